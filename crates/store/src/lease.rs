//! The lease of a store that several servers share: who leads, and until when by the database's clock.
//!
//! What a server does about it is decided by [`scheduler::lease`]; here are the statements. The lease is taken by whoever finds its
//! row as it saw it: of several servers that try, one succeeds. Taking it waits for the lock on the row that every transaction of the
//! leader before holds until it has ended, so nothing is written in an older term once a newer one has begun.

use std::time::Duration;

use model::Term;
use scheduler::lease::SeenLease;

use crate::database::{CLOCK, no_lease, seen_lease};
use crate::migrations::newest;
use crate::rows::to_i64;
use crate::{Store, StoreError};

/// What a lease says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its id, another one at each start of a server.
    pub id: String,
    /// The URL at which other servers reach it.
    pub address: String,
}

impl Store {
    /// Whether several servers may use the store, so that it is written under a lease. Else a lock keeps others away.
    pub fn is_shared(&self) -> bool {
        self.database.is_shared()
    }

    /// The lease as it is now, and who holds it.
    pub async fn lease(&self) -> Result<(SeenLease, Holder), StoreError> {
        let failed = StoreError::query("read the lease");
        let mut db = self.database.lease().await.map_err(failed)?;
        let sql =
            format!("SELECT term, renewals, expires_at - {CLOCK}, holder, address FROM lease");
        let rows = db.fetch(&sql, Vec::new()).await.map_err(failed)?;
        db.roll_back().await.map_err(failed)?;
        let row = rows.first().ok_or_else(no_lease)?;
        let seen = seen_lease(row)?;
        let holder = Holder {
            id: row.get(3),
            address: row.get(4),
        };
        Ok((seen, holder))
    }

    /// Takes the lease for a new term, if it is as it was seen. `None`: somebody else was first.
    ///
    /// # Errors
    /// Among others, a newer server has brought the store to a schema that this one does not know: it may follow, and never lead.
    pub async fn acquire_lease(
        &self,
        seen: SeenLease,
        holder: &Holder,
        ttl: Duration,
    ) -> Result<Option<Term>, StoreError> {
        let failed = StoreError::query("take the lease");
        let term = Term(seen.term.0.saturating_add(1));
        let mut db = self.database.lease().await.map_err(failed)?;
        let sql = "SELECT MAX(version) FROM _sqlx_migrations";
        let schema = db.fetch(sql, Vec::new()).await.map_err(failed)?;
        let schema = schema.first().and_then(|row| row.get::<Option<i64>>(0));
        if let Some(found) = schema.filter(|found| *found > newest()) {
            return Err(StoreError::NewerSchema {
                store: "that servers share".to_owned(),
                found,
                known: newest(),
            });
        }
        // Waits for the transactions of the leader before. Its renewal takes no such lock.
        db.fetch("SELECT term FROM lease FOR UPDATE", Vec::new())
            .await
            .map_err(failed)?;
        let sql = format!(
            "UPDATE lease SET term = $1, holder = $2, address = $3, renewals = 0, expires_at = {CLOCK} + $4 \
             WHERE term = $5 AND renewals = $6"
        );
        let values = vec![
            to_i64("a term", term.0)?.into(),
            (&holder.id).into(),
            (&holder.address).into(),
            millis(ttl).into(),
            to_i64("a term", seen.term.0)?.into(),
            to_i64("the renewals of a lease", seen.renewals)?.into(),
        ];
        let taken = db.execute(&sql, values).await.map_err(failed)?;
        db.commit().await.map_err(failed)?;
        Ok((taken > 0).then_some(term))
    }

    /// Renews the lease of a term. False: the term is over, or was given up.
    pub async fn renew_lease(&self, term: Term, ttl: Duration) -> Result<bool, StoreError> {
        let sql = format!(
            "UPDATE lease SET renewals = renewals + 1, expires_at = {CLOCK} + $1 WHERE term = $2 AND expires_at > 0"
        );
        let values = vec![millis(ttl).into(), to_i64("a term", term.0)?.into()];
        self.on_lease("renew the lease", &sql, values).await
    }

    /// Gives up the lease of a term, so that another server takes it at once. False: the term is over.
    pub async fn release_lease(&self, term: Term) -> Result<bool, StoreError> {
        let sql = "UPDATE lease SET expires_at = 0 WHERE term = $1";
        let values = vec![to_i64("a term", term.0)?.into()];
        self.on_lease("give up the lease", sql, values).await
    }

    async fn on_lease(
        &self,
        operation: &'static str,
        sql: &str,
        values: Vec<crate::database::Value>,
    ) -> Result<bool, StoreError> {
        let failed = StoreError::query(operation);
        let mut db = self.database.lease().await.map_err(failed)?;
        let written = db.execute(sql, values).await.map_err(failed)?;
        db.commit().await.map_err(failed)?;
        Ok(written > 0)
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
