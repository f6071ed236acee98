"""Shared by all tests: hypothesis profiles, and what it takes to ask a real kernel.

Tests that ask one are marked `kernel`. They skip, saying why, where there is no root or a tool is missing; with
NETEMU_REQUIRE_KERNEL=1 in the environment such a skip is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from hypothesis import HealthCheck, settings

_QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("dev", max_examples=25, deadline=None, suppress_health_check=_QUIET)
settings.register_profile("ci", max_examples=60, deadline=None, suppress_health_check=_QUIET, derandomize=True)
settings.register_profile("deep", max_examples=2000, deadline=None, suppress_health_check=_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

REQUIRED = os.environ.get("NETEMU_REQUIRE_KERNEL") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel: asks a real kernel (root, network namespaces, Debian's packages)")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Kernels are asked by one worker each: what they play at a time is theirs to choose, and takes a core."""
    for item in items:
        for kernel in ("host_kernel", "uml_kernel"):
            if kernel in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(kernel))


def missing_for_host() -> str | None:
    """Why the running kernel cannot be asked, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root for a network namespace"
    for tool in (
        "unshare",
        "ip",
        "iptables-legacy",
        "iptables-legacy-restore",
        "iptables-legacy-save",
        "ipset",
        "conntrack",
    ):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian packages iptables ipset conntrack iproute2 util-linux)"
    probe = ["unshare", "-n", "iptables-legacy", "-t", "nat", "-S"]
    if subprocess.run(probe, capture_output=True).returncode:
        return "this kernel has no iptables-legacy in a fresh network namespace"
    return None


def missing_for_uml() -> str | None:
    """Why User Mode Linux cannot be asked, or None."""
    for tool in ("linux.uml", "ipvsadm", "ipset", "iptables-legacy", "conntrack", "ip", "modprobe"):
        if shutil.which(tool) is None:
            return f"needs {tool} (Debian packages user-mode-linux kmod ipvsadm ipset iptables conntrack iproute2)"
    return None


@pytest.fixture(scope="session")
def host_kernel() -> None:
    """The running kernel may be asked (in namespaces of the test's own)."""
    if why := missing_for_host():
        pytest.skip(why)


@pytest.fixture(scope="session")
def uml_kernel() -> None:
    """User Mode Linux may be asked."""
    if why := missing_for_uml():
        pytest.skip(why)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    outcome = yield
    report = outcome.get_result()
    if REQUIRED and report.skipped and item.get_closest_marker("kernel"):
        report.outcome = "failed"
        report.longrepr = f"skipped where a kernel was promised: {report.longrepr}"
