"""What pip installs: `lambda_layer` and `lambda_ops` as they are, and the networks as the package `lambda_resnets`.

In a checkout the networks are `resnet.py`, `resnet_lambda.py` and `convert.py`. Among everything else that is installed
such names would say nothing, and could hide another package's; so their installed copies import each other by the
package's name. All else that concerns the build stands in `pyproject.toml`.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PACKAGE, MODULES = "lambda_resnets", ("resnet", "resnet_lambda", "convert")
IMPORT = re.compile(rf"^from ({'|'.join(MODULES)}) import ", re.M)
DOCSTRING = '''"""λ-ResNets (`resnet_lambda`), their baseline (`resnet`), other packages' lambda layers (`convert`)."""
'''


class BuildWithNetworks(build_py):
    """An editable install has `lambda_layer` and `lambda_ops` alone; the networks lie beside them in the checkout."""

    def get_source_files(self) -> list[str]:
        """What a source archive (sdist) needs for this build."""
        return [*super().get_source_files(), *(f"{name}.py" for name in MODULES)]

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, PACKAGE)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(DOCSTRING, encoding="utf-8")
        for name in MODULES:
            source = Path(f"{name}.py").read_text(encoding="utf-8")
            (folder / f"{name}.py").write_text(IMPORT.sub(rf"from {PACKAGE}.\1 import ", source), encoding="utf-8")


setup(cmdclass={"build_py": BuildWithNetworks})
