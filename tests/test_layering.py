"""The arrows between packages (docs and CONTRIBUTING describe them), read from the imports in the source."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "rdo": ROOT / "rdo",
    "rdo_kernels": ROOT / "kernels/rdo_kernels",
    "rdo_harness": ROOT / "harness/rdo_harness",
    "asv_bench": ROOT / "harness/asv_bench",
    "asv_tools": ROOT / "harness/asv_tools",
}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
HEAVY = ("numba", "triton", "transformers", "pandas", "matplotlib", "scipy", "safetensors", "google_crc32c", "rich")


def module_of(path: Path) -> str:
    """Import name of a source file."""
    for package, folder in PACKAGES.items():
        if path.is_relative_to(folder):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            return ".".join(parts).removesuffix(".__init__")
    raise AssertionError(path)


def imports(path: Path, *, at_import_time: bool = False) -> Iterator[str]:
    """Modules that a file imports, ``from package import name`` as ``package.name``; not those for type checkers."""
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes: list[ast.AST] = list(node.orelse)
        elif at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes = []
        else:
            nodes = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base] if base else parents)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        for child in nodes:
            yield from visit(child)

    return visit(ast.parse(path.read_text(), str(path)))


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def importers(*targets: str) -> dict[str, set[str]]:
    """For every module of ours, which of the targets it imports, functions included."""
    found = {module_of(path): {t for t in targets for name in imports(path) if inside(name, t)} for path in SOURCES}
    return {module: hits for module, hits in found.items() if hits}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("rdo_kernels", ("rdo", "rdo_harness")),
        ("rdo", ("rdo_harness", "pandas", "matplotlib", "rich", "scipy")),
        ("rdo.entropy", ("rdo.quantizers", "rdo.coders", "rdo.constraint", "rdo.checkpoint", "rdo_kernels")),
        ("rdo.quantizers", ("rdo.entropy", "rdo.coders", "rdo.constraint", "rdo.checkpoint")),
        ("rdo.coders", ("rdo.entropy", "rdo.quantizers", "rdo.constraint", "rdo.checkpoint", "torch")),
        ("rdo.constraint", ("rdo.coders", "rdo.checkpoint")),
        ("rdo.checkpoint", ("rdo.entropy", "rdo.constraint", "rdo.attach")),
        ("rdo.errors", ("rdo",)),
        ("rdo.control", ("rdo.constraint", "rdo.attach")),
        ("rdo_harness", ("asv_bench", "asv_tools")),
        ("asv_bench", ("asv_tools",)),
        ("rdo_harness.methods", ("rdo_harness.tasks", "rdo_harness.run", "rdo_harness.cli")),
        ("rdo_harness.tasks", ("rdo_harness.methods", "rdo_harness.run", "rdo_harness.cli")),
        ("rdo_harness.architectures", ("rdo_harness.methods", "rdo_harness.run", "rdo_harness.cli")),
    ],
)
def test_arrows(package: str, forbidden: tuple[str, ...]) -> None:
    broken = {module: hits for module, hits in importers(*forbidden).items() if inside(module, package)}
    assert not broken


@pytest.mark.parametrize(
    ("libraries", "allowed"),
    [
        (
            ("pandas", "matplotlib"),
            ("rdo_harness.report", "rdo_harness.report_tables", "rdo_harness.figures", "asv_tools.trends"),
        ),
        (
            ("transformers",),
            ("rdo_harness.architectures", "rdo.integrations", "rdo_harness.peers.workers", "asv_bench.compression"),
        ),
        (("peft", "pytorch_lightning", "accelerate"), ("rdo.integrations",)),
        (("numba", "triton"), ("rdo_kernels",)),
        (
            ("rdo_kernels",),
            ("rdo_kernels", "rdo", "rdo_harness.gpu", "rdo_harness.kernel_checks", "asv_bench", "asv_tools"),
        ),
        (("safetensors",), ("rdo.checkpoint", "rdo_harness")),
        (("google_crc32c",), ("rdo.checkpoint",)),
        (("rich", "scipy", "bjontegaard"), ("rdo_harness", "asv_bench")),
        (("asv", "asv_runner"), ("asv_tools",)),
        (("pickle", "cloudpickle", "dill", "joblib", "shelve"), ()),
    ],
)
def test_only_these_modules_import(libraries: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    users = {m: hits for m, hits in importers(*libraries).items() if not any(inside(m, package) for package in allowed)}
    assert not users


def test_heavy_libraries_of_the_harness_are_imported_inside_functions() -> None:
    """``rdo --help`` must not wait for transformers."""
    for path in SOURCES:
        if inside(module_of(path), "rdo_harness"):
            assert not [n for n in imports(path, at_import_time=True) if inside(n, "transformers")], path


def test_source_roots_are_not_packages() -> None:
    """A package called ``kernels`` would shadow one that transformers imports."""
    assert not (ROOT / "kernels/__init__.py").exists()
    assert not (ROOT / "harness/__init__.py").exists()


def test_files_are_short_and_have_a_docstring() -> None:
    for path in SOURCES:
        text = path.read_text()
        limit = 500 if inside(module_of(path), "rdo_kernels") else 300
        assert len(text.splitlines()) < limit, f"{path} is too long; split it"
        assert ast.get_docstring(ast.parse(text)), f"{path} has no docstring"
        assert "utils" not in path.stem
        assert "helper" not in path.stem


def test_importing_rdo_is_light_and_starts_no_gpu() -> None:
    script = (
        "import sys, torch; before = set(sys.modules); import rdo; "
        f"print([m for m in {HEAVY} if m in set(sys.modules) - before], torch.cuda.is_initialized())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == "[] False"
