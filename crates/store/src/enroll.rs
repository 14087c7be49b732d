//! Tokens, and the members they let in (ADR 0004).

use std::collections::BTreeSet;

use api::enrollment::{EnrollRequest, EnrollRole, Member};
use model::{EdgeId, Generation, NodeId, Timestamp};
use scheduler::apply::{Command, apply};
use scheduler::cluster_state::Node;
use scheduler::enrollment::{
    EnrollmentRefused, TokenRecord, admit, next_edge, next_node, unique_name,
};
use sqlx::{Row as _, SqliteConnection};

use crate::load::load;
use crate::open::commit;
use crate::rows::{number, to_i64};
use crate::write::write;
use crate::{EnrollError, Store, StoreError};

/// A machine that joined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolled {
    /// As which member.
    pub member: Member,
    /// Under which name.
    pub name: String,
}

/// The generation of a new node's desired state, in which it has no instances.
const FIRST_GENERATION: Generation = Generation(1);

impl Store {
    /// Writes a user's token by its hash. `name` is for people.
    pub async fn add_user_token(
        &self,
        hash: &[u8; 32],
        name: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO user_tokens (hash, name, role, created_at) VALUES (?, ?, 'admin', ?)",
        )
        .bind(hash.as_slice())
        .bind(name)
        .bind(to_i64("a time", now.0)?)
        .execute(&self.writer)
        .await
        .map_err(StoreError::query("write a user's token"))?;
        Ok(())
    }

    /// The name of the user whose token has this hash.
    pub async fn user_of_token(&self, hash: &[u8; 32]) -> Result<Option<String>, StoreError> {
        sqlx::query_scalar("SELECT name FROM user_tokens WHERE hash = ?")
            .bind(hash.as_slice())
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("look up a user's token"))
    }

    /// Writes a one-time enrollment token by its hash, and deletes those that expired unused more than a day ago.
    pub async fn add_enrollment_token(
        &self,
        hash: &[u8; 32],
        role: EnrollRole,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        const DAY_MS: u64 = 24 * 3600 * 1000;
        let operation = "write an enrollment token";
        let mut tx = self.begin().await?;
        sqlx::query("DELETE FROM enrollment_tokens WHERE used_at IS NULL AND expires_at < ?")
            .bind(to_i64("a time", now.0.saturating_sub(DAY_MS))?)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::query(operation))?;
        sqlx::query("INSERT INTO enrollment_tokens (hash, role, expires_at) VALUES (?, ?, ?)")
            .bind(hash.as_slice())
            .bind(role.to_string())
            .bind(to_i64("a time", expires_at.0)?)
            .execute(&mut *tx)
            .await
            .map_err(StoreError::query(operation))?;
        commit(tx, operation).await
    }

    /// Enrolls the holder of a token, once: the token is spent and the member written in one
    /// transaction, and of any number of callers at once one succeeds. A refusal spends nothing.
    pub async fn enroll(
        &self,
        token_hash: &[u8; 32],
        request: &EnrollRequest,
        now: Timestamp,
    ) -> Result<Enrolled, EnrollError> {
        let operation = "enroll a member";
        let mut tx = self.begin().await?;
        let record = load_token(&mut tx, token_hash).await?;
        let enrolled = match admit(record.as_ref(), request, now)? {
            EnrollRole::Node => add_node(&mut tx, request, now).await?,
            EnrollRole::Edge => add_edge(&mut tx, request, now).await?,
        };
        let spent = sqlx::query(
            "UPDATE enrollment_tokens SET used_at = ?, used_by = ? WHERE hash = ? AND used_at IS NULL",
        )
        .bind(to_i64("a time", now.0)?)
        .bind(enrolled.member.to_string())
        .bind(token_hash.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(StoreError::query(operation))?;
        if spent.rows_affected() != 1 {
            return Err(EnrollmentRefused::TokenUsed.into());
        }
        commit(tx, operation).await?;
        Ok(enrolled)
    }

    /// Whether this member is of the cluster still.
    pub async fn is_member(&self, member: Member) -> Result<bool, StoreError> {
        let (sql, id) = match member {
            Member::Node(id) => ("SELECT 1 FROM nodes WHERE id = ?", id.0),
            Member::Edge(id) => ("SELECT 1 FROM edges WHERE id = ?", id.0),
        };
        let found: Option<i64> = sqlx::query_scalar(sql)
            .bind(id)
            .fetch_optional(&self.reader)
            .await
            .map_err(StoreError::query("look up a member"))?;
        Ok(found.is_some())
    }
}

async fn load_token(
    db: &mut SqliteConnection,
    token_hash: &[u8; 32],
) -> Result<Option<TokenRecord>, StoreError> {
    let row = sqlx::query("SELECT role, expires_at, used_at FROM enrollment_tokens WHERE hash = ?")
        .bind(token_hash.as_slice())
        .fetch_optional(db)
        .await
        .map_err(StoreError::query("look up an enrollment token"))?;
    let Some(row) = row else { return Ok(None) };
    let role = match row.get(0) {
        "node" => EnrollRole::Node,
        "edge" => EnrollRole::Edge,
        other => {
            let cause = format!("the role of a token is `{other}`");
            return Err(StoreError::Unreadable { cause });
        }
    };
    let used_at = row
        .get::<Option<i64>, _>(2)
        .map(|at| number("a time", at).map(Timestamp))
        .transpose()?;
    Ok(Some(TokenRecord {
        role,
        expires_at: Timestamp(number("a time", row.get(1))?),
        used_at,
    }))
}

async fn add_node(
    db: &mut SqliteConnection,
    request: &EnrollRequest,
    now: Timestamp,
) -> Result<Enrolled, EnrollError> {
    let given = last_given(db, "SELECT last_node FROM cluster").await?;
    let id = next_node(given.map(NodeId))?;
    sqlx::query("UPDATE cluster SET last_node = ?")
        .bind(id.0)
        .execute(&mut *db)
        .await
        .map_err(StoreError::query("give a node its number"))?;
    let name = unique_name(&request.name, &names(db, "SELECT name FROM nodes").await?);
    let node = Node {
        name: name.clone(),
        region: request.region.clone(),
        hardware: request.hardware.clone(),
        wireguard_key: request.wireguard_public_key.clone(),
        driver: None,
        egress: None,
        seen_at: None,
        enrolled_at: now,
        online: false,
        generation: FIRST_GENERATION,
    };
    let mut cluster = load(&mut *db).await?;
    let node = Box::new(node);
    let changes = apply(&mut cluster, &Command::AddNode { id, node });
    write(db, &changes.map_err(StoreError::Refused)?).await?;
    Ok(Enrolled {
        member: Member::Node(id),
        name,
    })
}

async fn add_edge(
    db: &mut SqliteConnection,
    request: &EnrollRequest,
    now: Timestamp,
) -> Result<Enrolled, EnrollError> {
    let given = last_given(db, "SELECT last_edge FROM cluster").await?;
    let id = next_edge(given.map(EdgeId))?;
    sqlx::query("UPDATE cluster SET last_edge = ?")
        .bind(id.0)
        .execute(&mut *db)
        .await
        .map_err(StoreError::query("give an edge its number"))?;
    let name = unique_name(&request.name, &names(db, "SELECT name FROM edges").await?);
    sqlx::query("INSERT INTO edges (id, name, region, enrolled_at) VALUES (?, ?, ?, ?)")
        .bind(id.0)
        .bind(&name)
        .bind(&request.region)
        .bind(to_i64("a time", now.0)?)
        .execute(db)
        .await
        .map_err(StoreError::query("write an edge"))?;
    Ok(Enrolled {
        member: Member::Edge(id),
        name,
    })
}

/// The highest number that was ever given; numbers are not given twice.
async fn last_given(
    db: &mut SqliteConnection,
    sql: &'static str,
) -> Result<Option<u16>, StoreError> {
    let last: i64 = sqlx::query_scalar(sql)
        .fetch_optional(db)
        .await
        .map_err(StoreError::query("read the last number given"))?
        .ok_or(StoreError::NoCluster)?;
    Ok(Some(number("a member's number", last)?).filter(|last| *last > 0))
}

async fn names(
    db: &mut SqliteConnection,
    sql: &'static str,
) -> Result<BTreeSet<String>, StoreError> {
    let names: Vec<String> = sqlx::query_scalar(sql)
        .fetch_all(db)
        .await
        .map_err(StoreError::query("read the members' names"))?;
    Ok(names.into_iter().collect())
}
