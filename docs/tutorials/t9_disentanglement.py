"""
Disentanglement metrics on arrays that you already have
=======================================================

MIG, DCI, SAP and the FactorVAE score need codes and the true factors of the same images: two
arrays. They may come from any model, in any framework.
"""

# %%
# Codes and factors
# -----------------
#
# Three codes for the same five factors of variation: one that holds each factor in a dimension of
# its own, the same code after a rotation, and noise.

import matplotlib.pyplot as plt
import numpy as np

from flowfactor.metrics import CodeTable, dci, factor_vae_score, mig, sap

random = np.random.default_rng(0)
factors = random.integers(0, 6, size=(1000, 5))
noise = 0.1 * random.normal(size=factors.shape)
rotation, _ = np.linalg.qr(random.normal(size=(5, 5)))

codes = {
    "one dimension each": factors + noise,
    "rotated": (factors + noise) @ rotation,
    "noise": random.normal(size=factors.shape),
}

# %%
# Four scores
# -----------
#
# Each function takes arrays of NumPy, ``(N, D)`` codes and ``(N, F)`` factors. The FactorVAE score
# draws new samples with a factor held fixed; :class:`~flowfactor.metrics.CodeTable` draws them from
# the arrays. All are seeded.

scores = {}
for name, code in codes.items():
    parts = dci(code, factors, seed=0)
    scores[name] = {
        "MIG": mig(code, factors),
        "SAP": sap(code, factors, seed=0),
        "DCI disentanglement": parts.disentanglement,
        "DCI completeness": parts.completeness,
        "FactorVAE": factor_vae_score(
            CodeTable(code, factors), train_votes=500, test_votes=250, seed=0
        ),
    }
    print(f"{name:20}", {key: round(float(value), 2) for key, value in scores[name].items()})

# %%
# They reward different things
# ----------------------------
#
# A code that holds a factor twice is still disentangled in the sense of DCI, but MIG, SAP and the
# completeness of DCI drop. So report more than one of them.

twice = np.concatenate((factors + noise, factors[:, :1] + noise[:, 1:2]), axis=1)
print("MIG with one factor twice:", round(mig(twice, factors), 2))
print("DCI disentanglement:      ", round(dci(twice, factors, seed=0).disentanglement, 2))

figure, axes = plt.subplots(figsize=(7, 3))
labels = list(next(iter(scores.values())))
for place, (name, found) in enumerate(scores.items()):
    axes.bar(np.arange(len(labels)) + 0.27 * (place - 1), found.values(), 0.25, label=name)
axes.set_xticks(range(len(labels)), labels, fontsize=8)
axes.set_ylim(0, 1.05)
axes.legend(frameon=False, fontsize=8)
figure.tight_layout()

# %%
# A model of this package
# -----------------------
#
# For a trained model, :func:`flowfactor.metrics.encode_dataset` makes the arrays, and
# ``evaluation.metrics: {disentanglement: {}}`` puts the scores into every table.
