-- Certificates of hosts, with their keys sealed (identity::SealKey) under a key that is not here.
CREATE TABLE certificates (
    name            TEXT PRIMARY KEY,
    chain_pem       TEXT NOT NULL,              -- the certificate, and those of its issuers
    sealed          BYTEA NOT NULL,              -- the private key as JSON, sealed
    source          TEXT NOT NULL,              -- api::certificates::CertificateSource
    "by"            TEXT NOT NULL,              -- the name of the user who added it
    "at"            BIGINT NOT NULL
);

-- The cluster's own keys for edges, each of one name: the ingress CA, and what seals session tickets.
CREATE TABLE ingress_keys (
    name            TEXT PRIMARY KEY,
    sealed          BYTEA NOT NULL,
    "at"            BIGINT NOT NULL            -- when it was made
);
