-- control_plane::authority::Authority: the CAs before the one that signs which are trusted still, and the certificates of CAs by those before
-- them. PEM, one after the other, the newest first.
ALTER TABLE cluster ADD COLUMN ca_before_pem TEXT NOT NULL DEFAULT '';
ALTER TABLE cluster ADD COLUMN ca_cross_pem TEXT NOT NULL DEFAULT '';
