//! Keys, the cluster's CA, certificates and tokens.
