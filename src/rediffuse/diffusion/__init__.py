"""Noise diffusion: schedules, the process, timestep samplers, respacing, solvers and guidance.

Pure functions on tensors and small frozen objects; see ``docs/diffusion.md``.
"""

from rediffuse.diffusion.guidance import classifier_free, classifier_guided, condition_dropout
from rediffuse.diffusion.levels import NoiseLevels, noise_levels
from rediffuse.diffusion.process import (
    PREDICTIONS,
    Prediction,
    at_timesteps,
    posterior_mean,
    posterior_variance,
    predict_eps,
    predict_x0,
    prediction_target,
    q_sample,
    rescale_timesteps,
    snr_weights,
)
from rediffuse.diffusion.respace import respace, space_log_snr, space_timesteps
from rediffuse.diffusion.schedule import SCHEDULES, NoiseSchedule, Variance, from_betas, noise_schedule
from rediffuse.diffusion.solvers import (
    SOLVERS,
    Callback,
    Network,
    NoiseSource,
    Solver,
    ancestral,
    ddim,
    dpmpp_2m,
    one_step,
    solver,
)
from rediffuse.diffusion.timesteps import (
    TIMESTEP_SAMPLERS,
    FixStepSampler,
    LossAwareSampler,
    UniformSampler,
    timestep_sampler,
)

__all__ = [
    "PREDICTIONS",
    "SCHEDULES",
    "SOLVERS",
    "TIMESTEP_SAMPLERS",
    "Callback",
    "FixStepSampler",
    "LossAwareSampler",
    "Network",
    "NoiseLevels",
    "NoiseSchedule",
    "NoiseSource",
    "Prediction",
    "Solver",
    "UniformSampler",
    "Variance",
    "ancestral",
    "at_timesteps",
    "classifier_free",
    "classifier_guided",
    "condition_dropout",
    "ddim",
    "dpmpp_2m",
    "from_betas",
    "noise_levels",
    "noise_schedule",
    "one_step",
    "posterior_mean",
    "posterior_variance",
    "predict_eps",
    "predict_x0",
    "prediction_target",
    "q_sample",
    "rescale_timesteps",
    "respace",
    "snr_weights",
    "solver",
    "space_log_snr",
    "space_timesteps",
    "timestep_sampler",
]
