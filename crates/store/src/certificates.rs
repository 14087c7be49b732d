//! Certificates of hosts, and the cluster's own keys for edges. What is secret comes and goes sealed: no key is here.

use model::{Term, Timestamp};

use crate::database::put;
use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

/// A certificate as it is stored.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredCertificate {
    /// Its name.
    pub name: String,
    /// The certificate and, after it, those of its issuers, PEM.
    pub chain_pem: String,
    /// Its key, sealed.
    pub sealed: Vec<u8>,
    /// From where it is.
    pub source: String,
    /// Who added it.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

impl std::fmt::Debug for StoredCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredCertificate")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Keeps a certificate, in this term; one of the same name is replaced.
    pub async fn set_certificate(
        &self,
        term: Term,
        certificate: &StoredCertificate,
    ) -> Result<(), StoreError> {
        let operation = "write a certificate";
        let columns = vec![
            ("name", (&certificate.name).into()),
            ("chain_pem", (&certificate.chain_pem).into()),
            ("sealed", certificate.sealed.as_slice().into()),
            ("source", (&certificate.source).into()),
            ("by", (&certificate.by).into()),
            ("at", to_i64("a time", certificate.at.0)?.into()),
        ];
        let mut db = self.begin(term).await?;
        put(&mut *db, operation, "certificates", 1, vec![columns]).await?;
        db.commit().await.map_err(StoreError::query(operation))
    }

    /// Every certificate, by name.
    pub async fn certificates(&self) -> Result<Vec<StoredCertificate>, StoreError> {
        let sql = "SELECT name, chain_pem, sealed, source, \"by\", \"at\" FROM certificates ORDER BY name";
        let rows = self.rows("read the certificates", sql, Vec::new()).await?;
        rows.iter()
            .map(|row| {
                Ok(StoredCertificate {
                    name: row.get(0),
                    chain_pem: row.get(1),
                    sealed: row.get(2),
                    source: row.get(3),
                    by: row.get(4),
                    at: Timestamp(number("a time", row.get(5))?),
                })
            })
            .collect()
    }

    /// Deletes a certificate, in this term; false when there was none.
    pub async fn remove_certificate(&self, term: Term, name: &str) -> Result<bool, StoreError> {
        let failed = StoreError::query("delete a certificate");
        let mut db = self.begin(term).await?;
        let sql = "DELETE FROM certificates WHERE name = $1";
        let deleted = db.execute(sql, vec![name.into()]).await;
        let deleted = deleted.map_err(failed)?;
        db.commit().await.map_err(failed)?;
        Ok(deleted > 0)
    }

    /// Keeps a key of the cluster's own for edges, in this term; one of the same name is replaced.
    pub async fn set_ingress_key(
        &self,
        term: Term,
        name: &str,
        sealed: &[u8],
        at: Timestamp,
    ) -> Result<(), StoreError> {
        let operation = "write a key for edges";
        let columns = vec![
            ("name", name.into()),
            ("sealed", sealed.into()),
            ("at", to_i64("a time", at.0)?.into()),
        ];
        let mut db = self.begin(term).await?;
        put(&mut *db, operation, "ingress_keys", 1, vec![columns]).await?;
        db.commit().await.map_err(StoreError::query(operation))
    }

    /// A key of the cluster's own for edges, sealed, and when it was made.
    pub async fn ingress_key(
        &self,
        name: &str,
    ) -> Result<Option<(Vec<u8>, Timestamp)>, StoreError> {
        let sql = "SELECT sealed, \"at\" FROM ingress_keys WHERE name = $1";
        let rows = self
            .rows("read a key for edges", sql, vec![name.into()])
            .await?;
        let row = rows.first().map(|row| {
            let at = number("a time", row.get(1))?;
            Ok((row.get(0), Timestamp(at)))
        });
        row.transpose()
    }
}
