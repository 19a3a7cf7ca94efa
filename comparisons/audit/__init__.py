"""A user's own network: is its parametrization right, and if not, which weight is wrong?  The module is its own function:

    comparisons.audit(model, optimizer=tx)          comparisons.audit.study.audit
"""

import sys
from types import ModuleType


class _Question(ModuleType):
    def __call__(self, model, **options):
        from comparisons.audit.study import audit

        return audit(model, **options)


sys.modules[__name__].__class__ = _Question
