# The program and nothing else; made from a static binary (docs/operations.md, "A container").
FROM scratch
ARG BINARY=target/x86_64-unknown-linux-musl/release/gateway
COPY ${BINARY} /gateway
COPY --chown=65532:65532 contrib/data /data
USER 65532:65532
WORKDIR /data
VOLUME /data
ENV GATEWAY_DATABASE__PATH=/data/gateway.db
ENV GATEWAY_SERVER__LISTEN=0.0.0.0:8080
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=6s --start-period=60s CMD ["/gateway", "healthcheck"]
ENTRYPOINT ["/gateway"]
CMD ["serve"]
