"""The terms of a loss for one batch, as several test files need them."""

import torch

from rolib.distillation.masking import add_positions
from rolib.distillation.objective import Objective


def counts_of(batch, teachers, config):
    """The number of places of each term, by name."""
    objective = Objective(config, teachers)
    add_positions(batch, objective.soft_targets, objective.states)
    names = [term.name for term in objective.terms]
    return dict(zip(names, objective.counts(batch), strict=True))


def terms_of(student, teachers, batch, config):
    """The mean of each term over its places, by name."""
    counts = counts_of(batch, teachers, config)
    weights = torch.zeros(len(counts), dtype=next(student.parameters()).dtype)
    _, sums = Objective(config, teachers).loss(student, batch, weights)
    means = [total / max(1, count) for total, count in zip(sums, counts.values(), strict=True)]
    return dict(zip(counts, means, strict=True))


def loss_of(student, teachers, batch, config):
    """The loss, with its gradient."""
    counts = torch.tensor(list(counts_of(batch, teachers, config).values())).clamp(min=1)
    alphas = torch.tensor(list(alphas_of(teachers, config).values()))
    return Objective(config, teachers).loss(student, batch, alphas / counts)[0]


def alphas_of(teachers, config):
    """The weight of each term in the loss, by name."""
    return {term.name: term.alpha for term in Objective(config, teachers).terms}
