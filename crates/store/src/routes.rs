//! The routes: a row for each host.

use std::collections::BTreeMap;

use scheduler::routes::{RouteIndex, StoredRoute};
use sqlx::{Row as _, SqliteConnection};

use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

impl Store {
    /// The routes that were written last. One that cannot be read is not known: it is made anew with its env, and where its
    /// env cannot be read either, edges that have it keep it until then.
    pub async fn routes(&self) -> Result<RouteIndex, StoreError> {
        let failed = StoreError::query("read the routes");
        let mut transaction = self.reader.begin().await.map_err(failed)?;
        let row = sqlx::query("SELECT last_route_table FROM cluster")
            .fetch_optional(&mut *transaction)
            .await;
        let counter = row.map_err(failed)?.map_or(0, |row| row.get::<i64, _>(0));
        let rows = sqlx::query("SELECT host, route_json, changed, json_version FROM routes")
            .fetch_all(&mut *transaction)
            .await
            .map_err(failed)?;
        transaction.rollback().await.map_err(failed)?;
        let mut routes = Vec::with_capacity(rows.len());
        for row in rows {
            let host: String = row.get(0);
            match from_json(row.get(3), row.get(1)) {
                Ok(route) => {
                    let changed = number("a route's counter", row.get(2))?;
                    routes.push((host, StoredRoute { route, changed }));
                }
                Err(cause) => {
                    tracing::warn!(host, %cause, "a stored route cannot be read; it is made anew");
                }
            }
        }
        Ok(RouteIndex::new(
            routes,
            number("the route table's counter", counter)?,
        ))
    }
}

pub(crate) async fn put(
    db: &mut SqliteConnection,
    routes: &BTreeMap<String, Option<StoredRoute>>,
) -> Result<(), StoreError> {
    let failed = StoreError::query("write the routes");
    if routes.is_empty() {
        return Ok(());
    }
    for (host, stored) in routes {
        let query = match stored {
            Some(StoredRoute { route, changed }) => sqlx::query(
                "INSERT INTO routes (host, route_json, changed, json_version) VALUES (?1, ?2, ?3, ?4) \
                 ON CONFLICT (host) DO UPDATE SET route_json = ?2, changed = ?3, json_version = ?4",
            )
            .bind(host)
            .bind(to_json(route)?)
            .bind(to_i64("a route's counter", *changed)?)
            .bind(JSON_VERSION),
            None => sqlx::query("DELETE FROM routes WHERE host = ?").bind(host),
        };
        query.execute(&mut *db).await.map_err(failed)?;
    }
    sqlx::query("UPDATE cluster SET last_route_table = last_route_table + 1")
        .execute(db)
        .await
        .map_err(failed)?;
    Ok(())
}
