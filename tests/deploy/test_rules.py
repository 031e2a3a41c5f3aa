"""Alerts: each is tested, each is explained, and each asks for metrics that there are."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.generate_protos import ROOT
from tests.deploy.names import metric_names, served_names
from tests.deploy.programs import DEPLOY, run, succeed

RULES = DEPLOY / "prometheus" / "rules.yaml"
TESTS = DEPLOY / "prometheus" / "rules.test.yaml"
# What the alerts ask for that the server does not serve: Prometheus and kube-state-metrics do.
FOREIGN = frozenset({"up", "kube_deployment_status_replicas_unavailable"})


def rules() -> list[dict[str, Any]]:
    """Return every rule."""
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def alerts() -> list[str]:
    """Return the names of the alerts."""
    return [rule["alert"] for rule in rules() if "alert" in rule]


@pytest.mark.parametrize(
    ("check", "file"), [("config", "prometheus.yaml"), ("rules", "rules.yaml")]
)
def test_prometheus_takes_what_is_written(check: str, file: str) -> None:
    """A rule that does not parse keeps all of them from being loaded."""
    assert "SUCCESS" in succeed("promtool", "check", check, DEPLOY / "prometheus" / file)


def test_the_rules_do_what_their_tests_say() -> None:
    """Alerts that never fire, or always do, are found here rather than at night."""
    succeed("promtool", "test", "rules", TESTS)


def test_a_wrong_rule_fails_its_test(tmp_path: Path) -> None:
    """The check above is worth what it catches."""
    text = RULES.read_text()
    (tmp_path / RULES.name).write_text(text.replace("lokr_serve_step_failures", "step_failures"))
    (tmp_path / TESTS.name).write_text(TESTS.read_text())

    assert run("promtool", "test", "rules", tmp_path / TESTS.name).returncode != 0


@pytest.mark.parametrize("alert", alerts())
def test_every_alert_is_tested_and_explained(alert: str) -> None:
    """Whoever is woken by one reads what to do."""
    (rule,) = (each for each in rules() if each.get("alert") == alert)
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    cases = [case for each in tests for case in each.get("alert_rule_test", [])]
    tested = [case for case in cases if case["alertname"] == alert]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)

    assert any("exp_alerts" in case for case in tested)
    assert anchor == alert.lower()
    assert alert in headings


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_rule_asks_for_metrics_that_there_are(rule: dict[str, Any]) -> None:
    """A metric that was renamed makes an alert silent, not wrong."""
    recorded = {each["record"] for each in rules() if "record" in each}

    assert metric_names(rule["expr"]) <= served_names() | recorded | FOREIGN
