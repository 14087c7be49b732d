-- Certificates of hosts, with their keys sealed (identity::SealKey) under a key that is not here.
CREATE TABLE certificates (
    name            TEXT PRIMARY KEY,
    chain_pem       TEXT NOT NULL,              -- the certificate, and those of its issuers
    sealed          BLOB NOT NULL,              -- the private key as JSON, sealed
    source          TEXT NOT NULL,              -- api::certificates::CertificateSource
    "by"            TEXT NOT NULL,              -- the name of the user who added it
    "at"            INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The cluster's own keys for edges, each of one name: the ingress CA, and what seals session tickets.
CREATE TABLE ingress_keys (
    name            TEXT PRIMARY KEY,
    sealed          BLOB NOT NULL,
    "at"            INTEGER NOT NULL            -- when it was made
) STRICT, WITHOUT ROWID;
