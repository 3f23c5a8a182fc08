"""Secrets that are recognised without a name nearby: an example for each row of the table, and private keys.

The examples are made up. Each is put together from its prefix and a filler, so that this file holds nothing
that a secret scanner would report.
"""

from __future__ import annotations

import re
import string

import pytest

from transport_kit.reporting.values.scrub import scrub_text
from transport_kit.reporting.values.secret_forms import FORMS, Form, scrub_forms

_HEX = "0123456789abcdef" * 8
_ANY = "Zq7x0vXw9Lm3Kp8Rt5Vb2NcJ4hGf6Ds1" * 6
_UUID = f"{_HEX[:8]}-{_HEX[:4]}-{_HEX[:4]}-{_HEX[:4]}-{_HEX[:12]}"

#: Provider -> tokens, each as (prefix, rest).
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "JSON web token": (("eyJ", f"hbGciOiJIUzI1NiJ9.{_ANY[:20]}.{_ANY[:12]}"),),
    "1Password service account": (("ops_eyJ", _ANY[:60]),),
    "Adafruit": (("aio_", _ANY[:28]),),
    "age": (("AGE-SECRET-KEY-1", _ANY[:58].upper()),),
    "Airtable": (("pat", f"{_ANY[:14]}.{_HEX[:64]}"),),
    "Alibaba Cloud": (("LTAI", _ANY[:20]),),
    "Anthropic": (("sk-ant-", f"api03-{_ANY[:90]}"),),
    "Artifactory": (("AKCp", _ANY[:69]), ("cmVmdGtu", _ANY[:56])),
    "Atlassian": (("ATATT3", f"{_ANY[:180]}={_HEX[:8].upper()}"),),
    "AWS": tuple((prefix, _ANY[:16].upper()) for prefix in ("AKIA", "ASIA", "ABIA", "ACCA")),
    "AWS Bedrock": (("ABSK", _ANY[:110]), ("bedrock-api-key-", _ANY[:40])),
    "Azure Active Directory": (("abc8Q~", _ANY[:34]),),
    "Bitbucket": (("ATBB", _ANY[:28]),),
    "Buildkite": (("bkua_", _HEX[:40]),),
    "Brevo": (("xkeysib-", f"{_HEX[:64]}-{_ANY[:16]}"), ("xsmtpsib-", f"{_HEX[:64]}-{_ANY[:16]}")),
    "Cerebras": (("csk-", _ANY[:48].lower()),),
    "CircleCI": (("CCIPAT_", f"{_ANY[:22]}_{_HEX[:40]}"),),
    "Clojars": (("CLOJARS_", _ANY[:60].lower()),),
    "Cloudflare origin CA": (("v1.0-", f"{_HEX[:24]}-{_HEX + _HEX[:18]}"),),
    "Contentful": (("CFPAT-", _ANY[:43]),),
    "crates.io": (("cio", _ANY[:32]),),
    "Databricks": (("dapi", _HEX[:32]), ("dapi", f"{_HEX[:32]}-2")),
    "DigitalOcean": (("dop_v1_", _HEX[:64]), ("doo_v1_", _HEX[:64]), ("dor_v1_", _HEX[:64])),
    "Discord bot": (("M", f"{_ANY[:23]}.{_ANY[:6]}.{_ANY[:38]}"),),
    "Discord user": (("mfa.", _ANY[:84]),),
    "Docker Hub": (("dckr_pat_", _ANY[:27]), ("dckr_oat_", _ANY[:32])),
    "Doppler": (("dp.pt.", _ANY[:43]), ("dp.st.", f"prd.{_ANY[:43]}")),
    "Dropbox": (("sl.", _ANY[:140]), ("sl.", f"u.{_ANY[:140]}")),
    "Duffel": (("duffel_live_", _ANY[:43]),),
    "Dynatrace": (("dt0c01.", f"{_ANY[:24].upper()}.{_ANY[:64].upper()}"),),
    "EasyPost": (("EZAK", _ANY[:54]), ("EZTK", _ANY[:54])),
    "Facebook": (("EAA", _ANY[:120]),),
    "Figma": (("figd_", _ANY[:40]),),
    "Firebase Cloud Messaging": (("AAAA", f"{_ANY[:7]}:APA91b{_ANY[:134]}"),),
    "Firecrawl": (("fc-", _HEX[:32]),),
    "Flutterwave": (("FLWSECK-", f"{_HEX[:32]}-X"), ("FLWSECK_TEST-", f"{_HEX[:32]}-X")),
    "Fly.io": (("fo1_", _ANY[:43]), ("fm2_", _ANY[:100])),
    "Frame.io": (("fio-u-", _ANY[:64]),),
    "GitHub": (*((f"gh{kind}_", _ANY[:36]) for kind in "oprsu"), ("github_pat_", _ANY[:82])),
    "GitLab": tuple(
        (f"gl{kind}-", _ANY[:20])
        for kind in ("pat", "ptt", "dt", "rt", "cbt", "soat", "imt", "agent", "ft", "ffct", "oas")
    ),
    "GitLab runner": (("GR1348941", _ANY[:20]),),
    "GoCardless": (("live_", f"{_ANY[:20]}-{_ANY[:19]}"),),
    "Google API": (("AIza", f"Sy{_ANY[:33]}"),),
    "Google OAuth access": (("ya29.", f"a0{_ANY[:100]}"),),
    "Google OAuth refresh": (("1//0", f"4{_ANY[:60]}"),),
    "Google OAuth client": (("GOCSPX-", _ANY[:28]),),
    "Grafana Cloud": (("glc_", _ANY[:60]),),
    "Grafana service account": (("glsa_", f"{_ANY[:32]}_{_HEX[:8]}"),),
    "Groq": (("gsk_", _ANY[:52]),),
    "Heroku": (("HRKU-", f"AA{_ANY[:58]}"),),
    "Honeycomb": (("hcaik_", _ANY[:58].lower()),),
    "HubSpot": (("pat-na1-", _UUID), ("pat-eu1-", _UUID)),
    "Hugging Face": (("hf_", _ANY[:34]), ("api_org_", _ANY[:34])),
    "Infracost": (("ico-", _ANY[:32]),),
    "Instagram": (("IGQV", _ANY[:130]),),
    "Langfuse": (("sk-lf-", _UUID),),
    "LangSmith": (("lsv2_pt_", f"{_HEX[:32]}_{_HEX[:10]}"), ("lsv2_sk_", f"{_HEX[:32]}_{_HEX[:10]}")),
    "LaunchDarkly": (("sdk-", _UUID), ("api-", _UUID)),
    "Linear": (("lin_api_", _ANY[:40]), ("lin_oauth_", _HEX[:64])),
    "MailerSend": (("mlsn.", _HEX[:64]),),
    "Mailgun": (("key-", _HEX[:32]), ("pubkey-", _HEX[:32])),
    "Mapbox": (("sk.eyJ", f"{_ANY[:80]}.{_ANY[:22]}"),),
    "MaxMind": (("", f"{_ANY[:6]}_{_ANY[:29]}_mmk"),),
    "Midtrans": (("SB-Mid-server-", _ANY[:24]),),
    "Mollie": (("live_", _ANY[:30]),),
    "Neon": (("napi_", _ANY[:64].lower()),),
    "Netlify": (("nfp_", _ANY[:36]),),
    "New Relic": (("NRAK-", _ANY[:27].upper()), ("NRII-", _ANY[:32]), ("NRJS-", _HEX[:19])),
    "Notion": (("ntn_", _ANY[:46]), ("secret_", _ANY[:43])),
    "npm": (("npm_", _ANY[:36]),),
    "NuGet": (("oy2", _ANY[:43].lower()),),
    "NVIDIA": (("nvapi-", _ANY[:64]),),
    "Octopus Deploy": (("API-", _ANY[:26].upper()),),
    "OneSignal": (("os_v2_app_", _ANY[:103].lower()),),
    "OpenAI": (
        *((f"sk-{kind}-", _ANY[:100]) for kind in ("proj", "svcacct", "admin")),
        ("sk-", f"{_ANY[:20]}T3BlbkFJ{_ANY[:20]}"),
        ("sk-", f"or-v1-{_HEX[:64]}"),
    ),
    "OpenShift": (("sha256~", _ANY[:43]),),
    "Paddle": (("pdl_live_", f"apikey_{_ANY[:50].lower()}"),),
    "PayPal": (("access_token$production$", f"{_HEX[:16]}${_HEX[:32]}"),),
    "Perplexity": (("pplx-", _HEX[:48]),),
    "Pinecone": (("pcsk_", _ANY[:70]),),
    "Plaid": (("access-sandbox-", _UUID), ("access-production-", _UUID)),
    "PlanetScale": (("pscale_tkn_", _ANY[:43]), ("pscale_pw_", _ANY[:43])),
    "PostHog": (("phx_", _ANY[:43]),),
    "Postman": (("PMAK-", f"{_HEX[:24]}-{_HEX[:34]}"),),
    "Prefect": (("pnu_", _ANY[:36]),),
    "Pulumi": (("pul-", _HEX[:40]),),
    "PyPI": (("pypi-Ag", f"EIcHlwaS5vcmc{_ANY[:100]}"),),
    "Razorpay": (("rzp_live_", _ANY[:14]),),
    "ReadMe": (("rdme_", _ANY[:70].lower()),),
    "Render": (("rnd_", _ANY[:32]),),
    "Replicate": (("r8_", _ANY[:37]),),
    "Resend": (("re_", f"{_ANY[:8]}_{_ANY[:24]}"),),
    "RubyGems": (("rubygems_", _HEX[:48]),),
    "Salesforce": (("00D", f"{_ANY[:15]}!{_ANY[:90]}"),),
    "Scalingo": (("tk-us-", _ANY[:48]),),
    "SendGrid": (("SG.", f"{_ANY[:22]}.{_ANY[:43]}"),),
    "Sentry": (("sntrys_", f"eyJ{_ANY[:100]}_{_ANY[:43]}"), ("sntryu_", _HEX[:64])),
    "Shippo": (("shippo_live_", _HEX[:40]),),
    "Shopify": (("shpat_", _HEX[:32]), ("shpss_", _HEX[:32]), ("shpca_", _HEX[:32]), ("shppa_", _HEX[:32])),
    "Slack": (
        *((f"xox{kind}-", f"12345678-{_ANY[:24]}") for kind in "abeoprs"),
        ("xapp-", f"1-A0{_ANY[:60]}"),
        ("xoxe.xoxp-", f"1-{_ANY[:60]}"),
    ),
    "SonarQube": (("squ_", _HEX[:40]), ("sqp_", _HEX[:40]), ("sqa_", _HEX[:40])),
    "Sourcegraph": (("sgp_", f"{_HEX[:16]}_{_HEX[:40]}"), ("sgp_", _HEX[:40])),
    "Square": (("sq0atp-", _ANY[:22]), ("sq0csp-", _ANY[:43]), ("EAAA", _ANY[:60])),
    "Stripe": tuple((f"{kind}_{mode}_", _ANY[:24]) for kind in ("sk", "rk") for mode in ("live", "test")),
    "Stripe webhook": (("whsec_", _ANY[:32]),),
    "Supabase": (("sbp_", _HEX[:40]), ("sb_secret_", _ANY[:31])),
    "Tailscale": (("tskey-auth-", f"{_ANY[:12]}-{_ANY[:32]}"),),
    "Tavily": (("tvly-", f"dev-{_ANY[:32]}"),),
    "Telegram bot": (("123456789:", f"AA{_ANY[:33]}"), ("bot123456789:", f"AA{_ANY[:33]}")),
    "Tencent Cloud": (("AKID", _ANY[:32]),),
    "Terraform Cloud": (("", f"{_ANY[:14]}.atlasv1.{_ANY[:67]}"),),
    "Together AI": (("tgp_v1_", _ANY[:43]),),
    "Trigger.dev": (("tr_prod_", _ANY[:20]), ("tr_dev_", _ANY[:20])),
    "Twilio": (("SK", _HEX[:32]),),
    "Typeform": (("tfp_", _ANY[:59]),),
    "HashiCorp Vault": (("hvs.", _ANY[:90]), ("hvb.", _ANY[:140])),
    "Vercel": (("vercel_blob_rw_", _ANY[:48]), ("vcp_", _ANY[:56])),
    "xAI": (("xai-", _ANY[:80]),),
    "Yandex Cloud": (("t1.", f"{_ANY[:20]}.{_ANY[:86]}"), ("AQVN", _ANY[:36])),
    "Zuplo": (("zpka_", f"{_HEX[:32]}_{_HEX[:8]}"),),
}
TOKENS = [
    pytest.param(prefix + rest, id=f"{provider}-{prefix}")
    for provider, tokens in EXAMPLES.items()
    for prefix, rest in tokens
]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_of_a_known_form_is_filtered(token: str) -> None:
    """A token grants access wherever it was copied to, and most messages have no name beside it."""
    for around in ("{}", "clone with {} failed", "('{}', 1)", "a.{}", "path/{}/x", "k={}&n=1"):
        text = scrub_text(around.format(token))
        assert token not in text
        assert "[Filtered]" in text


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.provider}-{form.prefix}")
def test_each_row_of_the_table_has_an_example(form: Form) -> None:
    """A row without an example is untested, and may match nothing."""
    pattern = re.compile(form.prefix + form.rest, re.ASCII)
    assert any(pattern.fullmatch(prefix + rest) for prefix, rest in EXAMPLES[form.provider])


@pytest.mark.parametrize(
    "text",
    [
        "commit 4142a4f5e80d5c482cb86c19f087c01747ff399f",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        _UUID,
        f"data:image/png;base64,{_ANY}",
        "order-20261201-000123456789",
        "live_reload_of_templates_in_development_mode",
        "test_a_server_that_ends_under_load_keeps_what_the_table_says",
        "re_compile_of_a_pattern_that_is_much_too_long",
        "key-value-store-of-the-application-server",
        "sk-learn-contrib-and-other-packages",
        "pat-terns-of-speech-and-of-behaviour",
        "api-gateway-production-eu-central-1",
        "/usr/lib/python3.11/site-packages/django/core/handlers/exception.py",
        "SKIPPED_BECAUSE_OF_A_MISSING_SERVER_ON_HOST",
        "EAAAndOtherWordsThatBeginLikeAToken",
        "2026-12-01T12:00:00.000000+00:00",
        f"x{_ANY[:3]}ghp_{_ANY[:36]}",
    ],
)
def test_a_long_word_that_is_no_token_is_left_alone(text: str) -> None:
    """Hashes, identifiers and paths explain the error."""
    assert scrub_text(text) == text


@pytest.mark.parametrize("kind", ["RSA ", "EC ", "OPENSSH ", "ENCRYPTED ", "DSA ", ""])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\\n"])
def test_a_private_key_is_filtered_whole(kind: str, line_end: str) -> None:
    """In a message, in a variable and in the repr of one, where line ends are escaped."""
    lines = (f"-----BEGIN {kind}PRIVATE KEY-----", _ANY[:64], _ANY[:64], f"-----END {kind}PRIVATE KEY-----")
    assert scrub_text(f"got {line_end.join(lines)} here") == "got [Filtered] here"


def test_a_private_key_that_was_cut_is_filtered_to_the_end() -> None:
    """Messages are cut at a length, which may remove the end line."""
    text = f"got -----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{_ANY[:64]}"
    assert scrub_text(text) == "got [Filtered]"


def test_a_certificate_is_left_alone() -> None:
    """It is public, and shows which one was used."""
    text = f"-----BEGIN CERTIFICATE-----\n{string.ascii_letters}\n-----END CERTIFICATE-----"
    assert scrub_text(text) == text


@pytest.mark.parametrize(
    "address",
    [
        "hooks.slack.com/services/{}",
        "discord.com/api/webhooks/{}",
        "hooks.zapier.com/hooks/catch/{}",
        "acme.webhook.office.com/webhookb2/{}",
        "maker.ifttt.com/trigger/alarm/with/key/{}",
        "events.pagerduty.com/integration/{}",
        "open.feishu.cn/open-apis/bot/v2/hook/{}",
    ],
)
def test_the_path_of_a_web_hook_is_its_credential(address: str) -> None:
    """Whoever knows the address can post."""
    assert scrub_text(f"POST https://{address.format('T0/B0/Zq7x0vXw')} failed") == (
        f"POST https://{address.format('[Filtered]')} failed"
    )


def test_a_text_shorter_than_any_token_is_not_searched() -> None:
    """It is returned as it is."""
    assert scrub_forms("ghp_short") == "ghp_short"
