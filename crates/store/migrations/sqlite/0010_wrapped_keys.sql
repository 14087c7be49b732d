-- The keys of the cluster, wrapped by the key-encryption key. Until the first start of a server that knows it, the CA's key is in
-- ca_key_pem, in clear; afterwards that is empty.

ALTER TABLE cluster ADD COLUMN ca_key_wrapped BLOB;
ALTER TABLE cluster ADD COLUMN seal_key_wrapped BLOB;
