"""The semi-supervised algorithms in float64 NumPy, from their published equations.

Shares nothing with `train`. Each class keeps its state as attributes; `step` gives targets,
weights, loss and penalty, and `thresholds` those in force after the steps so far.
"""

import numpy as np


def softmax(logits):
    return np.exp(log_softmax(logits))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def cross_entropy(logits, targets, weights):
    """Mean over all samples, whatever their weight."""
    each = [-target @ row for target, row in zip(targets, log_softmax(logits), strict=True)]
    return weights @ each / len(each)


def loss_gradient(logits, targets, weights):
    """Of `cross_entropy` in the logits, for targets that sum to 1."""
    return weights[:, None] * (softmax(logits) - targets) / len(logits)


def histogram(labels, classes):
    return np.array([np.sum(labels == k) for k in range(classes)]) / len(labels)


def sum_norm(values):
    return values / values.sum(axis=-1, keepdims=True)


def quotient(a, b):
    """With 1/0 := 0."""
    return np.array([x / y if y > 0 else 0.0 for x, y in zip(a, b, strict=True)])


class Supervised:
    def __init__(self, classes, pool):
        self.classes, self.pool = classes, pool

    def step(self, views):
        """Nothing is learned of the views, which are empty."""
        return views.weak, np.zeros(len(views.weak)), 0.0, 0.0

    def thresholds(self):
        return np.full(self.classes, np.inf)


class FixMatch(Supervised):
    def __init__(self, classes, pool, threshold=0.95):
        super().__init__(classes, pool)
        self.threshold = threshold

    def step(self, views):
        q = softmax(views.weak)
        targets, weights = self.targets(q), self.gate(q)
        return targets, weights, cross_entropy(views.strong, targets, weights), 0.0

    def targets(self, q):
        return np.eye(self.classes)[q.argmax(axis=1)]

    def gate(self, q):
        thresholds = self.thresholds()
        return np.array([float(row.max() >= thresholds[row.argmax()]) for row in q])

    def thresholds(self):
        return np.full(self.classes, self.threshold)


class PseudoLabel(FixMatch):
    def __init__(self, classes, pool, threshold=0.95, ramp=0.4):
        super().__init__(classes, pool, threshold)
        self.ramp = ramp

    def step(self, views):
        targets, weights, loss, _ = super().step(views._replace(strong=views.weak))
        return targets, weights, min(views.progress / self.ramp, 1) * loss, 0.0


class UDA(FixMatch):
    def __init__(self, classes, pool, threshold=0.8, temperature=0.4):
        super().__init__(classes, pool, threshold)
        self.temperature = temperature

    def targets(self, q):
        """As softmax(logits / temperature)."""
        return sum_norm(q ** (1 / self.temperature))


class FlexMatch(FixMatch):
    def __init__(self, classes, pool, threshold=0.95):
        super().__init__(classes, pool, threshold)
        self.selected = [None] * pool

    def step(self, views):
        learned = super().step(views)
        for place, row in zip(views.places, softmax(views.weak), strict=True):
            if row.max() >= self.threshold:
                self.selected[place] = row.argmax()
        return learned

    def thresholds(self):
        sigma = np.array([self.selected.count(k) for k in range(self.classes)])
        beta = sigma / max(sigma.max(), self.pool - sigma.sum())
        return self.threshold * beta / (2 - beta)


class SoftMatch(FixMatch):
    def __init__(self, classes, pool, statistics_momentum=0.999, sigmas=2.0):
        super().__init__(classes, pool)
        self.momentum, self.sigmas = statistics_momentum, sigmas
        self.mean_q, self.mu, self.var = None, 1 / classes, 1.0

    def gate(self, q):
        average = q.mean(axis=0)
        self.mean_q = average if self.mean_q is None else self.moved(self.mean_q, average)
        confidence = sum_norm(q / self.classes / self.mean_q).max(axis=1)
        self.mu = self.moved(self.mu, confidence.mean())
        self.var = self.moved(self.var, confidence.var(ddof=1))
        below = np.minimum(confidence - self.mu, 0)
        return np.exp(-(below**2) / (2 * self.var / self.sigmas**2))

    def moved(self, old, new):
        return self.momentum * old + (1 - self.momentum) * new

    def thresholds(self):
        return np.full(self.classes, self.mu)


class FreeMatch(FixMatch):
    def __init__(self, classes, pool, statistics_momentum=0.999, fairness_weight=0.01):
        super().__init__(classes, pool)
        self.momentum, self.fairness_weight = statistics_momentum, fairness_weight
        self.tau, self.mean_q, self.labels = 1 / classes, *np.full((2, classes), 1 / classes)

    def step(self, views):
        targets, weights, loss, _ = super().step(views)
        passing = softmax(views.strong)[weights > 0]
        return targets, weights, loss, self.fairness_weight * self.fairness(passing)

    def gate(self, q):
        kept, new = self.momentum, 1 - self.momentum
        self.tau = kept * self.tau + new * q.max(axis=1).mean()
        self.mean_q = kept * self.mean_q + new * q.mean(axis=0)
        self.labels = kept * self.labels + new * histogram(q.argmax(axis=1), self.classes)
        return super().gate(q)

    def fairness(self, passing):
        if len(passing) == 0:
            return 0.0
        a = sum_norm(quotient(self.mean_q, self.labels))
        predicted = histogram(passing.argmax(axis=1), self.classes)
        b = sum_norm(quotient(passing.mean(axis=0), predicted))
        return a @ np.log(b + 1e-12)

    def thresholds(self):
        return self.mean_q / self.mean_q.max() * self.tau
