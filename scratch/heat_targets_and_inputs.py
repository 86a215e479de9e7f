"""Prototype: heat-kernel soft targets and heat-noised inputs on GRU4Rec / SASRec."""
import sys, json
import numpy as np, torch
from scipy import sparse
from torch import nn
import rediffuse as rd
from rediffuse.models.baselines.gru4rec import GRU4Rec, GRU4RecConfig
from rediffuse.models.baselines.sasrec import SASRec, SASRecConfig
from rediffuse.graphs.item_graph import transitions
from rediffuse.models.next_item_loss import next_item_loss
from dataclasses import replace

def kernel(train, I, kind, tau, top=100):
    A = transitions(train.items, train.offsets, I, window=10, decay=0.6, back=1.0).matrix
    d = np.asarray(A.sum(1)).ravel(); d[d == 0] = 1
    # damp popularity: symmetric sqrt normalisation then row-normalise
    ds = sparse.diags_array(d ** -0.5)
    W = sparse.csr_array(ds @ A @ ds)
    r = np.asarray(W.sum(1)).ravel(); r[r == 0] = 1
    P = sparse.csr_array(sparse.diags_array(1 / r) @ W)
    if kind == "one_hop":
        K = P
    else:  # heat without the zeroth term: sum_k>=1 tau^k/k! P^k
        K = P * tau; term = P * tau
        for k in (2, 3):
            term = sparse.csr_array(term @ P) * (tau / k)
            term.data[term.data < 1e-4] = 0; term.eliminate_zeros()
            K = K + term
    K = sparse.csr_array(K)
    # keep top
    K.setdiag(0); K.eliminate_zeros()
    rows = []
    for i in range(I):
        a, b = K.indptr[i], K.indptr[i + 1]
        if b - a > top:
            drop = a + np.argpartition(K.data[a:b], b - a - top)[: b - a - top]
            K.data[drop] = 0
    K.eliminate_zeros()
    r = np.asarray(K.sum(1)).ravel()
    empty = r == 0
    r[empty] = 1
    K = sparse.csr_array(sparse.diags_array(1 / r) @ K)
    K = sparse.csr_array(K + sparse.diags_array(empty.astype(np.float32)))
    return K

def make(Base, BaseConfig):
    class Config(BaseConfig):
        alpha: float = 0.0
        kind: str = "heat"
        tau: float = 1.0
        p_in: float = 0.0
    class M(Base):
        name = Base.name + "_soft"
        Config_ = Config
        def fit(self, data):
            super().fit(data)
            K = kernel(data.train, self.num_items, "one_hop" if self.config.kind in ("uniform", "random") else self.config.kind, self.config.tau)
            self.K = torch.sparse_csr_tensor(torch.from_numpy(K.indptr.astype(np.int64)), torch.from_numpy(K.indices.astype(np.int64)), torch.from_numpy(K.data.astype(np.float32)), size=K.shape)
            KT = sparse.csr_array(K.T)
            self.KT = torch.sparse_csr_tensor(torch.from_numpy(KT.indptr.astype(np.int64)), torch.from_numpy(KT.indices.astype(np.int64)), torch.from_numpy(KT.data.astype(np.float32)), size=K.shape)
            self.cum = np.cumsum(K.data) ; self.Ks = K
        def noised(self, items):
            p = self.config.p_in
            if p and self.config.kind == "random":
                hit = (torch.rand(items.shape) < p) & (items < self.num_items)
                return torch.where(hit, torch.randint(self.num_items, items.shape), items)
            if not p: return items
            flat = items.numpy().ravel().copy()
            real = flat < self.num_items
            rng = np.random.default_rng(int(torch.randint(2**31, (1,))))
            hit = np.flatnonzero(real & (rng.random(len(flat)) < p))
            i = flat[hit]
            K = self.Ks
            base = np.where(K.indptr[i] > 0, self.cum[K.indptr[i] - 1], 0.0)
            u = base + rng.random(len(hit)) * (self.cum[K.indptr[i + 1] - 1] - base)
            at = np.clip(np.searchsorted(self.cum, u, side="right"), K.indptr[i], K.indptr[i + 1] - 1)
            flat[hit] = K.indices[at]
            return torch.from_numpy(flat.reshape(items.shape)).to(items.dtype)
        def loss(self, batch):
            clean = batch
            if self.config.p_in:
                batch = replace(batch, items=self.noised(batch.items))
            encoded = self.encode(batch)
            loss, _ = next_item_loss(self, encoded.vectors, batch, encoded.weights)
            if self.config.alpha:
                v = self.metric_space(encoded.vectors.float())
                E = self.metric_space(self.catalogue())
                if self.config.kind == "uniform":
                    S = E.mean(0, keepdim=True).expand_as(E)
                else:
                    S = SpMM.apply(self.K, self.KT, E.float())
                diff = (E - S)[batch.targets]
                loss = loss + self.config.alpha * (v * diff).sum(-1).mean()
            return loss * batch.rank_weight
    M.Config = Config
    M.__name__ = Base.__name__ + "Soft"
    return M
class SpMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, K, KT, E):
        ctx.KT = KT
        with torch.autocast('cpu', enabled=False):
            return K @ E.float()
    @staticmethod
    def backward(ctx, g):
        with torch.autocast('cpu', enabled=False):
            return None, None, ctx.KT @ g.float()

GRU4RecSoft = make(GRU4Rec, GRU4RecConfig); SASRecSoft = make(SASRec, SASRecConfig)
MODELS = {"gru": GRU4RecSoft, "sas": SASRecSoft}
if __name__ == "__main__":
    model, data, minutes, out, *opts = sys.argv[1:]
    import os
    os.environ.setdefault("REDIFFUSE_DATA", "/work/shared/data")
    d = rd.public_dataset(data)
    s = rd.split.by_name("given", d) if data.startswith("amazon") else rd.split.by_name("default", d)
    config = {"metric": "ndcg@10/unseen", "epochs": 1000, "patience": 8}
    for o in opts:
        k, v = o.split("="); 
        try: v = json.loads(v)
        except Exception: pass
        config[k] = v
    seed = config.pop("seed", 0)
    run = rd.train(MODELS[model], s, out, config=config, seed=seed, max_minutes=float(minutes))
    v = run.validation
    print(f"RESULT {model} {data} {opts} min={run.minutes:.1f} best_epoch={run.config['training']['best_epoch']} val ndcg {100*v['ndcg@10/unseen']:.3f} hr {100*v['hr@10/unseen']:.3f}", flush=True)
