"""Procedures and modules that are stored in the tree, and how they become callable.

`compiling` (text to code), `requires` (what code needs), `importing` (the finders), `modules` and
`procedures` (what is stored, mirrored), `stored_module` (one module), `aside` (long texts, compiled
in another process).
"""

from moat_kv.code.modules import ModuleRoot
from moat_kv.code.procedures import CodeRoot

__all__ = ["CodeRoot", "ModuleRoot"]
