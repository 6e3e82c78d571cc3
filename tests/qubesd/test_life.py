"""The life of qubes in a pool, as a person at the terminal sees it."""


def test_first(dom0):
    dom0.run(
        "qvm-pool", "add", "-o", "container=tank/plain", "plain", "zfs_zvol"
    )
    dom0.run(
        "qvm-create", "-C", "TemplateVM", "-l", "black", "-P", "plain", "tmpl"
    )
    dom0.run("qvm-create", "-l", "red", "-t", "tmpl", "-P", "plain", "work")
    dom0.run("qvm-start", "work")
    dom0.run("qvm-shutdown", "--wait", "work")
