# One image for every process of Similis; docker-compose.yml says which command each runs.
FROM python:3.11-slim-bookworm AS build
# PyPI's torch brings 4 GB of CUDA libraries; Similis encodes on CPUs, so torch's index of CPU builds will do:
# docker compose build --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY services services
COPY workers workers
COPY shared shared
COPY migrations migrations
COPY benchmarks benchmarks
COPY models models
RUN python -m venv /opt/similis \
 && /opt/similis/bin/pip install --no-cache-dir --disable-pip-version-check . -c constraints.txt

FROM python:3.11-slim-bookworm
# 1000: the owner of the secrets' files, which compose hands through with the permissions they have
RUN useradd --uid 1000 --create-home similis \
 && install -d -o similis -g similis -m 0700 /var/lib/similis
COPY --from=build /opt/similis /opt/similis
ENV PATH=/opt/similis/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    SIMILIS_HOME=/var/lib/similis
USER similis
WORKDIR /var/lib/similis
VOLUME /var/lib/similis
EXPOSE 8000 11112
CMD ["similis", "api"]
