"""The Django app config: connects signals, checks and a hook. Starts no thread and makes no transport."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.core.signals import setting_changed

from transport_kit.serverless import report_uncaught
from transport_kit_django import facts
from transport_kit_django.checks import check_setting, check_site
from transport_kit_django.conf import get_kit, on_setting_changed

__all__ = ["TransportKitConfig"]


class TransportKitConfig(AppConfig):
    """`INSTALLED_APPS += ["transport_kit_django"]`."""

    name = "transport_kit_django"
    verbose_name = "transport-kit"

    def ready(self) -> None:
        """Connect signals, checks and a hook. The middleware, or the first use, makes the transport."""
        facts.connect()
        setting_changed.connect(on_setting_changed, dispatch_uid="transport_kit")
        checks.register(check_setting)
        checks.register(check_site)
        # Django has no signal for an exception that ends a management command.
        report_uncaught(get_kit, facts.CommandFacts(), mechanism="auto.command.django")
