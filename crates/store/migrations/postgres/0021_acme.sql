-- Certificates by ACME: what is remembered of each name (scheduler::acme::AcmeRecord), and the key of the certificate that is ordered, sealed (identity::SealKey).
CREATE TABLE acme_names (
    name            TEXT PRIMARY KEY,
    record          TEXT NOT NULL,              -- JSON
    sealed          BYTEA                       -- absent: no order is under way
);
