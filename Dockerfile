# The service (docs/serving.md): docker build -t rediffuse .
FROM python:3.11-slim

WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src ./src
# For a small image without CUDA, pass --build-arg PIP_EXTRA_INDEX_URL=... with the address of PyTorch's CPU builds.
ARG PIP_EXTRA_INDEX_URL=
RUN pip install --no-cache-dir --constraint constraints.txt "$(grep '^torch==' constraints.txt)" \
    && pip install --no-cache-dir --constraint constraints.txt ".[serve,ann]" \
    && useradd --create-home --uid 10001 rediffuse

USER rediffuse
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/ready')"]
# A container listens on a public address, so it requires a token: set REDIFFUSE_TOKEN.
ENTRYPOINT ["rediffuse", "serve", "--host", "0.0.0.0"]
CMD ["/runs/current"]
