"""What is installed: the package, its channel programs, the entry points."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="qubes-storage-zfs",
    version=Path(__file__).with_name("version").read_text("ascii").strip(),
    description="Qubes OS storage pools on ZFS volumes",
    license="BSD-2-Clause",
    python_requires=">=3.11",
    packages=find_packages(include=["qubes_storage_zfs*"]),
    package_data={"qubes_storage_zfs.zfs": ["programs/*.lua"]},
    zip_safe=False,
    entry_points={
        "qubes.storage": [
            "zfs_zvol = qubes_storage_zfs:ZfsZvolPool",
            "zfs_encrypted = qubes_storage_zfs:ZfsEncryptedPool",
        ],
        "console_scripts": ["qvm-zfs = qubes_storage_zfs.tools.main:main"],
        "qubes.ext": [
            "qubes_storage_zfs = qubes_storage_zfs.driver.extension:PoolExtension",
        ],
    },
)
