"""How the ant and humanoid experts were trained: SAC with sbx; the best greedy actor so far is kept.

    python -m venv x && x/bin/pip install sbx-rl "gymnasium[mujoco]" safetensors
    export XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OMP_NUM_THREADS=1
    x/bin/python train_expert.py Ant-v5 2000000 0 out/ant SAC

Ant and Humanoid learn from joint positions and velocities alone (27 of 105 and 45 of 348 observations). The first layer that
is exported has zero columns for the rest, so the actor reads the environment's ordinary observations. Two environments are
stepped for each gradient step: physics is far cheaper than an update.

Every 50,000 environment steps the greedy actor is evaluated on 10 episodes; OUT.safetensors and OUT.json hold the best so
far by mean - std. A checkpoint (model and replay buffer) is kept beside them every 200,000 steps: the same command goes on
after an interruption.
"""

import json
import os
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import sbx
from safetensors.numpy import save_file
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

env_id, steps, seed, out, name = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
ENVIRONMENTS = 2
LEFT_OUT = {"Ant-v5": ["cfrc_ext"], "Humanoid-v5": ["cinert", "cvel", "qfrc_actuator", "cfrc_ext"]}
env_kwargs = {f"include_{part}_in_observation": False for part in LEFT_OUT.get(env_id, [])}
os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
eval_env = gym.make(env_id, **env_kwargs)
full_dim = gym.make(env_id).observation_space.shape[0]


def evaluate(model, episodes=10, first_seed=10_000):
    """Return returns and lengths of greedy episodes."""
    returns, lengths = [], []
    for i in range(episodes):
        obs, _ = eval_env.reset(seed=first_seed + i)
        total, length, done = 0.0, 0, False
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = eval_env.step(action)
            total, length, done = total + reward, length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return np.array(returns), np.array(lengths)


def actor_tensors(params):
    """Flax Dense kernels (in, out) -> weights (out, in): two ReLU trunk layers, the mean head, the log-std head."""
    tensors = {}
    for i, layer in enumerate(["trunk.0", "trunk.1", "mean", "log_std"]):
        weight = np.asarray(params[f"Dense_{i}"]["kernel"]).T
        if i == 0:
            weight = np.pad(weight, ((0, 0), (0, full_dim - weight.shape[1])))
        tensors[f"{layer}.weight"] = np.ascontiguousarray(weight, dtype=np.float32)
        tensors[f"{layer}.bias"] = np.asarray(params[f"Dense_{i}"]["bias"], dtype=np.float32)
    return tensors


class KeepBest(BaseCallback):
    """Evaluate now and then; keep the best actor and a checkpoint to go on from."""

    def __init__(self, best=-np.inf):
        super().__init__()
        self.best, self.began = best, time.time()

    def _on_step(self):
        if self.num_timesteps % 50_000 == 0:
            returns, lengths = evaluate(self.model)
            print(
                f"{env_id} {self.num_timesteps} {time.time() - self.began:.0f}s return {returns.mean():.0f} +-"
                f" {returns.std():.0f} min {returns.min():.0f} length {lengths.mean():.0f}",
                flush=True,
            )
            score = float(returns.mean() - returns.std())
            if score > self.best:
                self.best = score
                save_file(actor_tensors(self.model.policy.actor_state.params["params"]), out + ".safetensors")
                card = {
                    "env_id": env_id,
                    "algorithm": name,
                    "environment_steps": self.num_timesteps,
                    "training_seed": seed,
                    "return_mean": float(returns.mean()),
                    "return_std": float(returns.std()),
                    "score": score,
                }
                Path(out + ".json").write_text(json.dumps(card, indent=1))
            if self.num_timesteps % 200_000 == 0:
                self.model.save(out + ".model.zip")
                self.model.save_replay_buffer(out + ".buffer.pkl")
        return True


algorithm = getattr(sbx, name)
options = {"learning_starts": 10_000, "train_freq": 1, "gradient_steps": 1}
environments = make_vec_env(env_id, n_envs=ENVIRONMENTS, seed=seed, env_kwargs=env_kwargs)
if os.path.exists(out + ".model.zip"):
    model = algorithm.load(out + ".model.zip", env=environments)
    model.load_replay_buffer(out + ".buffer.pkl")
    best = json.loads(Path(out + ".json").read_text())["score"] if os.path.exists(out + ".json") else -np.inf
    model.learn(steps - model.num_timesteps, callback=KeepBest(best), reset_num_timesteps=False)
else:
    model = algorithm("MlpPolicy", environments, seed=seed, **options)
    model.learn(steps, callback=KeepBest())
