"""Install the wheel and the sdist of a folder into an empty environment each, and use them as a newcomer would.

Usage: ``python .ci/try_package.py dist``
"""
from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

#: Files of the repository that the sdist lacks; it has all others, so that what was installed can be tested and measured.
NOT_IN_SDIST = {".gitignore"}

#: What the package has beside its modules.
CHECK = """
from importlib import metadata, resources
import celery_memsync
package = resources.files("celery_memsync")
assert package.joinpath("py.typed").is_file() and package.joinpath("store/lua/entry_write.lua").is_file()
assert all(hasattr(celery_memsync, name) for name in celery_memsync.__all__)
assert "memsync" in metadata.entry_points(group="pytest11").names
print("celery-memsync", metadata.version("celery-memsync"))
"""


def use(distribution: Path, example: Path) -> None:
    """Install a wheel or an sdist; import it, ask for help, run the example."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        programs = Path(folder) / "bin"

        def run(*command: str) -> None:
            subprocess.run([str(programs / command[0]), *command[1:]], check=True, cwd=folder, timeout=600)

        run("pip", "install", "--quiet", "--disable-pip-version-check", f"{distribution}[cli,embedded]")
        run("python", "-c", CHECK)
        run("celery", "memsync", "--help")
        run("celery-memsync-probe", "--help")
        run("python", str(example / "demo.py"), "--limit", "20")


def tracked() -> set[str]:
    """Return the files of the repository."""
    listing = subprocess.run(["git", "ls-files"], check=True, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    return set(listing.stdout.splitlines())


def main(folder: Path) -> None:
    """Try all that is in a folder."""
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as source, tarfile.open(sdist) as archive:
        archive.extractall(source)
        (root,) = Path(source).iterdir()
        assert [name for name in sorted(tracked() - NOT_IN_SDIST) if not (root / name).is_file()] == []
        for distribution in (wheel, sdist):
            use(distribution.resolve(), root / "example_project")
            print(f"{distribution.name}: works in an empty environment")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
