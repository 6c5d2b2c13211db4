"""Which tests are left to `make test-all`."""

from functools import partial

import pytest

thorough = partial(pytest.param, marks=pytest.mark.thorough)
"""Values of a parametrized test that only `make test-all` tries."""
