# %% [markdown]
# # Quickstart
#
# draft

# %%
# Installs what is missing, and nothing that is there: JAX stays as it is.
import importlib.util
import subprocess
import sys

MIRJAX = "mirjax[plot]"  # what pip is to install: a name, a path or a git address
NEEDED = {"mirjax": MIRJAX, "matplotlib": "matplotlib", "sklearn": "scikit-learn"}

missing = [what for module, what in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing], check=True)
    importlib.invalidate_caches()

# %%
import matplotlib.pyplot as plt

import mirjax
from mirjax import plot

ax = plot.levels({"collapse": mirjax.theory.collapsed_mir(10)}, ax=plt.figure().subplots())
ax.legend()
plt.show()
