# The daemon, its client and the bundled model. See docs/OPERATIONS.md, "Docker".
ARG BASE=debian:12

FROM ${BASE} AS build
COPY deploy/packages deploy/install-packages /src/deploy/
RUN /src/deploy/install-packages run build
COPY . /src
RUN meson setup /build /src && ninja -C /build server/denoised clients/cli/denoise \
    && strip /build/server/denoised /build/clients/cli/denoise

FROM ${BASE}
COPY deploy/packages deploy/install-packages /usr/share/denoised/
RUN /usr/share/denoised/install-packages run && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /state --shell /usr/sbin/nologin denoised \
    && install -d -o 10001 -g 10001 -m 0700 /state
COPY --from=build /build/server/denoised /build/clients/cli/denoise /usr/local/bin/
COPY deploy/healthcheck /usr/share/denoised/
COPY models /models

# Reachable from outside of the container, therefore with tokens: without DENOISED_TOKEN_FILE (or, by decision,
# DENOISED_INSECURE=true) the daemon refuses to start.
ENV DENOISED_LISTEN=0.0.0.0:8760 DENOISED_MODELS=/models DENOISED_STATE=/state
VOLUME /models /state
EXPOSE 8760
USER 10001:10001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["/usr/share/denoised/healthcheck"]
ENTRYPOINT ["/usr/local/bin/denoised"]
