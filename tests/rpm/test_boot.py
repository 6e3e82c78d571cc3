# SPDX-License-Identifier: BSD-2-Clause
"""qubesd waits for the import of zpools at boot, but not for ever."""

import os

import pytest

from .world import AS_ROOT, DROP_IN, UNIT, run

#: the units of a small boot, in which an import takes SECONDS
BOOT = {
    "default.target": "[Unit]\nWants=zfs-import.target qubesd.service\n",
    "basic.target": "[Unit]\n",
    "shutdown.target": "[Unit]\n",
    "exit.target": "[Unit]\n",
    "zfs-import.target": "[Unit]\nWants=zfs-import-cache.service\n",
    "zfs-import-cache.service": "[Unit]\nDefaultDependencies=no\n"
    "Before=zfs-import.target\n[Service]\nType=oneshot\n"
    "RemainAfterExit=yes\nExecStart=/bin/sleep SECONDS\n",
    "qubesd.service": "[Service]\nExecStart=/bin/sleep 1000\n",
}
#: script that prints the states of qubesd and the import when qubesd runs
WATCH = """
mount -t tmpfs tmpfs /run
mkdir -p -m 700 /run/systemd/system /run/user
export XDG_RUNTIME_DIR=/run/user SYSTEMD_UNIT_PATH="$1"
timeout 60 /usr/lib/systemd/systemd --user >/dev/null 2>&1 &
manager=$!
for _ in $(seq 300); do
    sleep 0.1
    systemctl --user is-active -q qubesd.service 2>/dev/null && break
done
systemctl --user show --value -p ActiveState qubesd.service zfs-import.target
systemctl --user kill -s KILL qubesd.service zfs-import-cache.service
kill $manager
"""


@pytest.mark.skipif(
    not os.access("/usr/lib/systemd/systemd", os.X_OK),
    reason="systemd is not installed (it need not run)",
)
@pytest.mark.parametrize(
    ("seconds", "state"), [("1", "active"), ("1000", "inactive")]
)
def test_qubesd_starts_although_an_import_hangs(
    installed, tmp_path, seconds, state
) -> None:
    """Use a systemd of the test's own, which orders jobs as dom0's does."""
    for name, text in BOOT.items():
        (tmp_path / name).write_text(text.replace("SECONDS", seconds))
    (tmp_path / "qubesd.service.d").mkdir()
    for file in (UNIT, DROP_IN):
        text = (installed / file).read_text()
        text = text.replace("/timeout 120 ", "/timeout 4 ")
        text = text.replace("/systemctl ", "/systemctl --user ")
        (tmp_path / file.removeprefix("/usr/lib/systemd/system/")).write_text(
            text
        )
    own = ("unshare", "--mount", "--propagation", "private")
    done = run(*AS_ROOT, *own, "bash", "-c", WATCH, "watch", tmp_path)
    assert done.stdout.split() == ["active", state]
