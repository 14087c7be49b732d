//! What is remembered of names with certificates by ACME. The keys of those that are ordered come and go sealed: no key is here.

use model::Term;
use scheduler::acme::AcmeRecord;

use crate::database::{delete, put};
use crate::{Store, StoreError};

/// What is remembered of a name.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredAcmeName {
    /// The host, or the wildcard.
    pub name: String,
    /// What is remembered; what cannot be read is as nothing.
    pub record: AcmeRecord,
    /// The key of the certificate that is ordered, sealed.
    pub sealed: Option<Vec<u8>>,
}

impl std::fmt::Debug for StoredAcmeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredAcmeName")
            .field("name", &self.name)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Remembers this of a name, in this term, in the place of what was remembered.
    pub async fn set_acme_name(
        &self,
        term: Term,
        stored: &StoredAcmeName,
    ) -> Result<(), StoreError> {
        let operation = "write what is remembered of a name with a certificate by ACME";
        let record =
            serde_json::to_string(&stored.record).map_err(|error| StoreError::Unstorable {
                what: "what is remembered of a name",
                cause: error.to_string(),
            })?;
        let columns = vec![
            ("name", (&stored.name).into()),
            ("record", record.into()),
            ("sealed", stored.sealed.as_deref().into()),
        ];
        let mut db = self.begin(term).await?;
        put(&mut *db, operation, "acme_names", 1, vec![columns]).await?;
        db.commit().await.map_err(StoreError::query(operation))
    }

    /// Forgets names, in this term.
    pub async fn delete_acme_names(&self, term: Term, names: &[&str]) -> Result<(), StoreError> {
        let operation = "forget names with certificates by ACME";
        let keys = names.iter().map(|name| vec![(*name).into()]);
        let mut db = self.begin(term).await?;
        delete(&mut *db, operation, "acme_names", &["name"], keys.collect()).await?;
        db.commit().await.map_err(StoreError::query(operation))
    }

    /// What is remembered of every name.
    pub async fn acme_names(&self) -> Result<Vec<StoredAcmeName>, StoreError> {
        let sql = "SELECT name, record, sealed FROM acme_names ORDER BY name";
        let operation = "read what is remembered of names with certificates by ACME";
        let rows = self.rows(operation, sql, Vec::new()).await?;
        let stored = rows.iter().map(|row| {
            let record: &str = row.get(1);
            StoredAcmeName {
                name: row.get(0),
                // It says when to try again: without it, the next try is at once.
                record: serde_json::from_str(record).unwrap_or_default(),
                sealed: row.get(2),
            }
        });
        Ok(stored.collect())
    }
}
