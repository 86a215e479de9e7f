"""Figures of papers on the same data, by the name of the result that they stand beside; not run here.

Metrics without ``/unseen`` keep seen items.
"""

PUBLISHED = {
    "social-diffnet-yelp-given-paper-diffnet": {
        "DiffNet with features": {"source": "authors' repository", "capped_recall@10": 0.3437, "ndcg@10": 0.2095},
        "DiffNet++ with features in its last product alone, untuned": {
            **{"source": "issue 36 of the authors' repository", "capped_recall@10": 0.3104, "ndcg@10": 0.1877},
        },
        "matrix factorisation, tuned": {"source": "GRecX; a slightly easier protocol", "ndcg@10": 0.2064},
    },
    "amazon-beauty-given": {
        "DiffuRec (paper)": {"source": "arXiv 2304.00686", "hr@10": 0.0791, "ndcg@10": 0.0475, "hr@5": 0.0558},
        "SASRec, full CE, tuned": {"source": "a later study", "hr@10/unseen": 0.0974, "ndcg@10/unseen": 0.0588},
    },
    "amazon-toys-given": {
        "DiffuRec (paper)": {"source": "arXiv 2304.00686", "hr@10": 0.0746, "ndcg@10": 0.0477, "hr@5": 0.0557},
        "SASRec, sampled softmax, tuned": {"source": "a later study", "hr@10/unseen": 0.097, "ndcg@10/unseen": 0.058},
    },
}
