# The service (docs/serving.md): docker build -t rediffuse .
# Pin it for builds that can be repeated: --build-arg BASE=python:3.11-slim@sha256:DIGEST (docs/serving.md, Deployment).
ARG BASE=python:3.11-slim
FROM ${BASE}

WORKDIR /app
# Dependencies before sources: a change of the sources installs the package alone, from the layers below.
COPY constraints.txt pyproject.toml ./
# PyTorch's CPU build. For CUDA 12.8: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
    --constraint constraints.txt "$(grep '^torch==' constraints.txt)"
RUN python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); o = p["project"]["optional-dependencies"]; \
    print(*p["build-system"]["requires"], *p["project"]["dependencies"], *o["serve"], *o["ann"], sep="\n")' > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY src ./src
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && useradd --create-home --uid 10001 rediffuse

USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready')"]
# A container listens on a public address, so it requires a token: set REDIFFUSE_TOKEN.
ENTRYPOINT ["rediffuse", "serve", "--host", "0.0.0.0"]
CMD ["/runs/current"]
