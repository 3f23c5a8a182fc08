"""Secrets that are recognised by their own form: tokens, private keys and the paths of web hooks.

`FORMS` is the table of tokens, with a row for each provider and prefix. All rows are compiled into one
pattern, which is tried where a long word begins. Adding a provider means adding a row here and an example in
the tests.

Source: what the providers document about their tokens, and the rules that secret scanners publish (gitleaks,
detect-secrets, GitHub's secret scanning). A token without a distinctive prefix or shape, such as 32
hexadecimal digits, can't be recognised by its form; `scrub.py` finds it by a name nearby.

Threads: stateless.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from transport_kit.reporting.values.secret_names import FILTERED

__all__ = ["FORMS", "Form", "SHORTEST", "scrub_forms"]


class Form(NamedTuple):
    """The tokens of one provider.

    Attributes:
        provider: Who issues and accepts the token.
        prefix: A pattern for the beginning of a token, literal letters and classes only.
        rest: A pattern for what follows the prefix. Must not backtrack over more than one run.
    """

    provider: str
    prefix: str
    rest: str


_W: Final = r"[A-Za-z0-9_\-]"
_A: Final = r"[A-Za-z0-9]"
_HEX: Final = r"[0-9a-fA-F]"
_UUID: Final = rf"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"

#: Each begins at the beginning of a word.
FORMS: Final = (
    Form("JSON web token", r"eyJ", r"[\w\-]{8,}+\.[\w\-]{4,}+(?:\.[\w\-]*+)*+"),
    Form("1Password service account", r"ops_eyJ", r"[\w\-+/=]{40,}+"),
    Form("Adafruit", r"aio_", rf"{_A}{{28}}"),
    Form("age", r"AGE-SECRET-KEY-1", r"[0-9A-Z]{40,}+"),
    Form("Airtable", r"pat", rf"{_A}{{14}}\.{_HEX}{{64}}"),
    Form("Alibaba Cloud", r"LTAI", rf"{_A}{{16,24}}(?!\w)"),
    Form("Anthropic", r"sk-ant-", rf"{_W}{{20,}}+"),
    Form("Artifactory", r"AKCp", rf"{_A}{{60,}}+"),
    Form("Artifactory", r"cmVmdGtu", rf"{_A}{{50,}}+"),
    Form("Atlassian", r"AT[AC]TT3", rf"{_W}{{50,}}+=?{_HEX}*+"),
    Form("AWS", r"(?:AKIA|ASIA|ABIA|ACCA)", r"[A-Z0-9]{16}(?!\w)"),
    Form("AWS Bedrock", r"ABSK", r"[A-Za-z0-9+/]{60,}+={0,2}"),
    Form("AWS Bedrock", r"bedrock-api-key-", r"[A-Za-z0-9+/=]{20,}+"),
    Form("Azure Active Directory", r"[\w~.]{3}[78]Q~", r"[\w~.\-]{31,34}"),
    Form("Bitbucket", r"ATBB", rf"{_A}{{24,}}+"),
    Form("Buildkite", r"bk(?:u[at]|ct)_", rf"{_A}{{20,}}+"),
    Form("Brevo", r"x(?:keysib|smtpsib)-", rf"{_HEX}{{64}}-{_A}{{16}}"),
    Form("Cerebras", r"csk-", rf"{_A}{{40,}}+"),
    Form("CircleCI", r"CCIPAT_", rf"{_W}{{20,}}+"),
    Form("Clojars", r"CLOJARS_", rf"{_A}{{60}}"),
    Form("Cloudflare origin CA", r"v1\.0-", rf"{_HEX}{{24}}-{_HEX}{{100,}}+"),
    Form("Contentful", r"CFPAT-", rf"{_W}{{40,}}+"),
    Form("crates.io", r"cio", rf"{_A}{{32}}(?!\w)"),
    Form("Databricks", r"dapi", rf"{_HEX}{{32}}(?:-\d)?"),
    Form("DigitalOcean", r"do[opr]_v1_", rf"{_HEX}{{64}}"),
    Form("Discord bot", r"[MNO]", rf"{_A}{{23,27}}\.{_W}{{6}}\.{_W}{{27,40}}"),
    Form("Discord user", r"mfa\.", rf"{_W}{{80,}}+"),
    Form("Docker Hub", r"dckr_[op]at_", rf"{_W}{{20,}}+"),
    Form("Doppler", r"dp\.(?:pt|st|ct|sa|scim|audit)\.", r"[\w.\-]{30,}+"),
    Form("Dropbox", r"sl\.", rf"(?:u\.)?{_W}{{100,}}+"),
    Form("Duffel", r"duffel_(?:test|live)_", rf"{_W}{{40,}}+"),
    Form("Dynatrace", r"dt0[a-z]\d\d\.", r"[A-Z0-9]{24}\.[A-Z0-9]{64}"),
    Form("EasyPost", r"EZ[AT]K", rf"{_A}{{54}}"),
    Form("Facebook", r"EAA", rf"{_A}{{40,}}+"),
    Form("Figma", r"fig[duo]_?r?_", rf"{_W}{{20,}}+"),
    Form("Firebase Cloud Messaging", r"AAAA", rf"{_W}{{7}}:APA91b{_W}{{100,}}+"),
    Form("Firecrawl", r"fc-", rf"{_HEX}{{32}}(?!\w)"),
    Form("Flutterwave", r"FLW(?:SECK|PUBK)(?:_TEST)?-", rf"{_A}{{12,}}+(?:-X)?"),
    Form("Fly.io", r"f[om][12]_", r"[\w+/=\-]{40,}+"),
    Form("Frame.io", r"fio-u-", rf"{_W}{{60,}}+"),
    Form("GitHub", r"gh[oprsu]_", r"\w{20,}+"),
    Form("GitHub", r"github_pat_", r"\w{20,}+"),
    Form("GitLab", r"gl(?:pat|ptt|dt|rt|rtr|cbt|soat|imt|agent|ft|ffct|oas)-", r"[\w\-.]{16,}+"),
    Form("GitLab runner", r"GR1348941", rf"{_W}{{20}}"),
    Form("GoCardless", r"live_", rf"{_W}{{40}}(?!{_W})"),
    Form("Google API", r"AIza", rf"{_W}{{30,}}+"),
    Form("Google OAuth access", r"ya29\.", r"[\w\-.]{20,}+"),
    Form("Google OAuth refresh", r"1//0", rf"{_W}{{30,}}+"),
    Form("Google OAuth client", r"GOCSPX-", rf"{_W}{{20,}}+"),
    Form("Grafana Cloud", r"glc_", r"[A-Za-z0-9+/=]{32,}+"),
    Form("Grafana service account", r"glsa_", rf"{_A}{{32}}_{_HEX}{{8}}"),
    Form("Groq", r"gsk_", rf"{_A}{{30,}}+"),
    Form("Heroku", r"HRKU-", rf"{_W}{{30,}}+"),
    Form("Honeycomb", r"hc[abx][il][kc]_", rf"{_A}{{40,}}+"),
    Form("HubSpot", r"pat-(?:na|eu|ap)\d-", _UUID),
    Form("Hugging Face", r"(?:hf_|api_org_)", rf"{_A}{{30,}}+"),
    Form("Infracost", r"ico-", rf"{_A}{{32}}(?!\w)"),
    Form("Instagram", r"IG(?:QV|AA)", rf"{_W}{{50,}}+"),
    Form("Langfuse", r"sk-lf-", _UUID),
    Form("LangSmith", r"lsv2_(?:pt|sk)_", rf"{_HEX}{{32}}_{_HEX}{{10}}"),
    Form("LaunchDarkly", r"(?:api|sdk|mob)-", rf"{_UUID}(?!\w)"),
    Form("Linear", r"lin_(?:api|oauth)_", rf"{_A}{{32,}}+"),
    Form("MailerSend", r"mlsn\.", rf"{_HEX}{{60,}}+"),
    Form("Mailgun", r"(?:key|pubkey)-", rf"{_HEX}{{32}}(?!\w)"),
    Form("Mapbox", r"sk\.eyJ", r"[\w\-]{20,}+\.[\w\-]{10,}+"),
    Form("MaxMind", r"(?=[A-Za-z0-9]{6}_)", rf"{_A}{{6}}_{_A}{{29}}_mmk"),
    Form("Midtrans", r"(?:SB-)?Mid-server-", rf"{_W}{{20,}}+"),
    Form("Mollie", r"(?:test|live)_", rf"{_A}{{30,40}}(?!\w)"),
    Form("Neon", r"napi_", rf"{_A}{{40,}}+"),
    Form("Netlify", r"nf[pcoub]_", rf"{_A}{{36,}}+"),
    Form("New Relic", r"NR(?:AK|II|JS|AA|BR|AL)-", rf"{_W}{{19,}}+"),
    Form("Notion", r"ntn_", rf"{_A}{{40,}}+"),
    Form("Notion", r"secret_", rf"{_A}{{43}}(?!\w)"),
    Form("npm", r"npm_", rf"{_A}{{36}}"),
    Form("NuGet", r"oy2", r"[a-z0-9]{43}(?!\w)"),
    Form("NVIDIA", r"nvapi-", rf"{_W}{{60,}}+"),
    Form("Octopus Deploy", r"API-", r"[A-Z0-9]{26,}+(?!\w)"),
    Form("OneSignal", r"os_v2_(?:app|org)_", rf"{_A}{{50,}}+"),
    Form("OpenAI", r"sk-(?:proj|svcacct|admin|None|service)-", rf"{_W}{{20,}}+"),
    Form("OpenAI", r"sk-", rf"(?:or-v1-{_HEX}{{60,}}+|{_A}{{20}}T3BlbkFJ{_A}{{20}}|{_A}{{32,}}+)"),
    Form("OpenShift", r"sha256~", rf"{_W}{{43}}"),
    Form("Paddle", r"pdl_(?:live|sdbx)_", r"\w{30,}+"),
    Form("PayPal", r"(?:access_token\$(?:production|sandbox)\$)", rf"{_A}{{16}}\${_HEX}{{32}}"),
    Form("Perplexity", r"pplx-", rf"{_A}{{40,}}+"),
    Form("Pinecone", r"pcsk_", r"\w{40,}+"),
    Form("Plaid", r"access-(?:sandbox|development|production)-", _UUID),
    Form("PlanetScale", r"pscale_(?:tkn|pw|oauth)_", r"[\w=.\-]{32,}+"),
    Form("PostHog", r"phx_", rf"{_W}{{40,}}+"),
    Form("Postman", r"PMAK-", rf"{_HEX}{{24}}-{_HEX}{{34}}"),
    Form("Prefect", r"pn[ub]_", rf"{_A}{{36}}"),
    Form("Pulumi", r"pul-", rf"{_HEX}{{40}}"),
    Form("PyPI", r"pypi-Ag", rf"{_W}{{50,}}+"),
    Form("Razorpay", r"rzp_(?:live|test)_", rf"{_A}{{14,}}+"),
    Form("ReadMe", r"rdme_", rf"{_A}{{70}}"),
    Form("Render", r"rnd_", rf"{_A}{{30,}}+"),
    Form("Replicate", r"r8_", rf"{_A}{{37,}}+"),
    Form("Resend", r"re_", rf"{_A}{{8}}_{_A}{{20,}}+"),
    Form("RubyGems", r"rubygems_", rf"{_HEX}{{48}}"),
    Form("Salesforce", r"00D", rf"{_A}{{12,15}}![\w.]{{60,}}+"),
    Form("Scalingo", r"tk-us-", rf"{_W}{{48}}"),
    Form("SendGrid", r"SG\.", r"[\w\-]{16,}+\.[\w\-]{30,}+"),
    Form("Sentry", r"sntry[su]_", r"[\w+/=\-]{40,}+"),
    Form("Shippo", r"shippo_(?:live|test)_", rf"{_HEX}{{40}}"),
    Form("Shopify", r"shp(?:at|ca|pa|ss|ua|tka)_", rf"{_HEX}{{32}}"),
    Form("Slack", r"xox[abeoprs]-", rf"{_W}{{8,}}+"),
    Form("Slack", r"xoxe\.xox[bp]-", rf"{_W}{{20,}}+"),
    Form("Slack", r"(?:xapp|xwfp)-", rf"{_W}{{20,}}+"),
    Form("SonarQube", r"sq[upa]_", rf"{_HEX}{{40}}"),
    Form("Sourcegraph", r"sgp_", rf"(?:{_HEX}{{16}}_|local_)?{_HEX}{{40}}"),
    Form("Square", r"sq0[a-z]{3}-", rf"{_W}{{22,}}+"),
    Form("Square", r"EAAA", rf"{_W}{{60}}(?!{_W})"),
    Form("Stripe", r"(?:[sr]k)_(?:live|test|prod)_", r"\w{8,}+"),
    Form("Stripe webhook", r"whsec_", r"[A-Za-z0-9+/=]{24,}+"),
    Form("Supabase", r"sb(?:p_|_secret_)", rf"{_W}{{20,}}+"),
    Form("Tailscale", r"tskey-[a-z]{3,12}-", rf"{_W}{{16,}}+"),
    Form("Tavily", r"tvly-", rf"{_W}{{24,}}+"),
    Form("Telegram bot", r"(?:bot)?\d{6,12}:", rf"AA{_W}{{30,35}}(?!{_W})"),
    Form("Tencent Cloud", r"AKID", rf"{_A}{{28,36}}(?!\w)"),
    Form("Terraform Cloud", r"(?=[A-Za-z0-9]{14}\.)", rf"{_A}{{14}}\.atlasv1\.{_W}{{60,}}+"),
    Form("Together AI", r"tgp_v1_", rf"{_W}{{40,}}+"),
    Form("Trigger.dev", r"tr_(?:dev|prod|stg|pat)_", rf"{_A}{{16,}}+"),
    Form("Twilio", r"SK", rf"{_HEX}{{32}}(?!\w)"),
    Form("Typeform", r"tfp_", r"[\w\-.=]{40,}+"),
    Form("HashiCorp Vault", r"hv[sbr]\.", rf"{_W}{{24,}}+"),
    Form("Vercel", r"(?:vercel_blob_rw|vc[pikar])_", rf"{_W}{{24,}}+"),
    Form("xAI", r"xai-", rf"{_A}{{60,}}+"),
    Form("Yandex Cloud", r"t1\.", r"[A-Z0-9a-z_\-]+={0,2}\.[A-Z0-9a-z_\-]{86}={0,2}"),
    Form("Yandex Cloud", r"AQVN", rf"{_W}{{35,38}}(?!{_W})"),
    Form("Zuplo", r"zpka_", r"\w{30,}+"),
)

#: Characters of the shortest token.
SHORTEST: Final = 14
_TOKEN = re.compile(
    rf"(?<![\w\-])(?=[\w.~\-/:$]{{{SHORTEST}}})(?:{'|'.join(prefix + rest for _, prefix, rest in FORMS)})",
    re.ASCII,
)

# A private key up to its end line, or up to the cut of the text.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN (?:[A-Z0-9]++ )*PRIVATE KEY(?: BLOCK)?-----(?:[^\-]++|-(?!----END ))*+"
    r"(?:-----END [A-Z0-9 ]++-----)?"
)
# The path of a web hook is its credential.
_WEB_HOOK = re.compile(
    r"(?:(?<=hooks\.slack\.com/services/)|(?<=hooks\.slack\.com/workflows/)|(?<=hooks\.slack\.com/triggers/)"
    r"|(?<=discord\.com/api/webhooks/)|(?<=discordapp\.com/api/webhooks/)|(?<=hooks\.zapier\.com/hooks/catch/)"
    r"|(?<=webhook\.office\.com/webhookb2/)|(?<=/with/key/)|(?<=events\.pagerduty\.com/integration/)"
    r"|(?<=open\.feishu\.cn/open-apis/bot/v2/hook/)|(?<=open\.larksuite\.com/open-apis/bot/v2/hook/)"
    r"|(?<=hook\.integromat\.com/)|(?<=api\.opsgenie\.com/v1/json/))[^\s'\"<>?#\\]++"
)
_WEB_HOOK_SIGNS: Final = ("hook", "/with/key/", "pagerduty", "opsgenie")


def scrub_forms(text: str) -> str:
    """Return the text with every secret filtered that is recognised by its own form."""
    if "PRIVATE KEY" in text:
        text = _PRIVATE_KEY.sub(FILTERED, text)
    # Words are counted first: most are shorter than any token, and counting costs a tenth of a search.
    if len(text) < SHORTEST or max(map(len, text.split()), default=0) < SHORTEST:
        return text
    text = _TOKEN.sub(FILTERED, text)
    if "/" in text and any(sign in text for sign in _WEB_HOOK_SIGNS):
        text = _WEB_HOOK.sub(FILTERED, text)
    return text
