"""DiffuRec in another framework: a RecBole-style model built from the plain torch parts.

The inputs are histories (item numbers, padded on the right), their lengths and the targets. In training the target is
noised, and `forward` returns x0_hat, the importance weights and t. At test the target is denoised from pure noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rediffuse.diffusion import noise_schedule, q_sample, solver, space_timesteps, timestep_sampler
from rediffuse.models.diffurec import Approximator


class DiffuRec(nn.Module):
    def __init__(self, n_items: int, size: int = 64, diffusion_steps: int = 32) -> None:
        super().__init__()
        self.n_items = n_items
        self.item_embedding = nn.Embedding(n_items + 1, size)  # the last row is padding
        self.approximator = Approximator(size, diffusion_steps, blocks=2, heads=2)
        self.schedule = noise_schedule("trunc_lin", steps=diffusion_steps)
        self.sampler = timestep_sampler("lossaware", steps=diffusion_steps)

    def forward(self, item_seq: Tensor, lengths: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.approximator.history(self.item_embedding(item_seq))
        x_0 = self.item_embedding(target)
        t, weights = self.sampler.sample(len(target), device=target.device)
        x_t = q_sample(self.schedule, x_0, t, torch.randn_like(x_0))
        return self.approximator(z, lengths, x_t, t, torch.randn_like), weights, t

    def calculate_loss(self, item_seq: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        x0_hat, weights, t = self(item_seq, lengths, target)
        losses = F.cross_entropy(x0_hat @ self.item_embedding.weight[: self.n_items].T, target, reduction="none")
        self.sampler.update(t, losses.detach())
        return (weights * losses).mean()

    @torch.no_grad()
    def full_sort_predict(self, item_seq: Tensor, lengths: Tensor, sampling_steps: int = 4) -> Tensor:
        z = self.approximator.history(self.item_embedding(item_seq))
        kept = space_timesteps(self.schedule.steps, str(sampling_steps))
        denoise = solver("ancestral")
        x0_hat = denoise(
            lambda x_t, t: self.approximator(z, lengths, x_t, t, torch.randn_like),
            torch.randn_like(z[:, 0]),
            self.schedule,
            kept,
        )
        return x0_hat @ self.item_embedding.weight[: self.n_items].T


def main() -> None:
    torch.manual_seed(0)
    items, users, length = 50, 256, 8
    start = torch.randint(items, (users, 1))
    sequences = (start + torch.arange(length + 1)) % items  # every user moves round a ring of items
    history, target, lengths = sequences[:, :-1], sequences[:, -1], torch.full((users,), length)
    model = DiffuRec(items)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(60):
        loss = model.calculate_loss(history, lengths, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    model.eval()
    hits = model.full_sort_predict(history, lengths).argmax(1) == target
    print(f"the next item is ranked first for {hits.float().mean():.0%} of the users")


if __name__ == "__main__":
    main()
