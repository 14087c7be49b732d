//! The routes: a row for each host.

use std::collections::BTreeMap;

use api::edge::Route;
use model::{Incarnation, Term};
use scheduler::routes::{RouteIndex, StoredRoute};

use crate::database::{Columns, Transaction, delete, put as put_rows};
use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

/// Highest counter of the route table that a store may have: counting up from here it never runs out of numbers.
const MAX_ROUTE_TABLE: i64 = 1 << 62;

impl Store {
    /// The routes that were written last. One that cannot be read is not known: it is made anew with its env, and where its
    /// env cannot be read either, edges that have it keep it until then.
    pub async fn routes(&self) -> Result<RouteIndex, StoreError> {
        let failed = StoreError::query("read the routes");
        let mut db = self.database.read().await.map_err(failed)?;
        let counter = "SELECT last_route_table FROM cluster";
        let counter = db.fetch(counter, Vec::new()).await.map_err(failed)?;
        let counter = counter.first().map_or(0, |row| row.get::<i64>(0));
        let counter = number("the route table's counter", counter)?;
        let rows = "SELECT host, route_json, changed, json_version FROM routes";
        let rows = db.fetch(rows, Vec::new()).await.map_err(failed)?;
        db.roll_back().await.map_err(failed)?;
        let mut routes = Vec::with_capacity(rows.len());
        for row in rows {
            let host: String = row.get(0);
            match from_json(row.get(3), row.get(1)) {
                Ok(route) => {
                    // No edge is told of the changes before this server; the newest is as good.
                    let changed = u64::try_from(row.get::<i64>(2)).unwrap_or(counter);
                    let changed = changed.min(counter);
                    routes.push((host, StoredRoute { route, changed }));
                }
                Err(cause) => {
                    tracing::warn!(host, %cause, "a stored route cannot be read; it is made anew");
                }
            }
        }
        Ok(RouteIndex::new(routes, counter))
    }

    /// Where the counter of the route table is damaged (over 2^62, or negative), begins another incarnation, in which it counts from 0: edges
    /// and nodes take what is of another incarnation, whatever they have. To be called before [`Store::load`], in the term that leads.
    /// Gives the counter that was damaged.
    pub async fn mend_route_counter(
        &self,
        term: Term,
        incarnation: Incarnation,
    ) -> Result<Option<i64>, StoreError> {
        let failed = StoreError::query("mend the route table's counter");
        let mut db = self.database.read().await.map_err(failed)?;
        let rows = db.fetch("SELECT last_route_table FROM cluster", Vec::new());
        let rows = rows.await.map_err(failed)?;
        db.roll_back().await.map_err(failed)?;
        let counter = rows.first().map_or(0, |row| row.get::<i64>(0));
        if (0..=MAX_ROUTE_TABLE).contains(&counter) {
            return Ok(None);
        }
        let mut db = self.begin(term).await?;
        let sql = "UPDATE cluster SET last_route_table = 0, incarnation = $1";
        let values = vec![incarnation.to_string().into()];
        db.execute(sql, values).await.map_err(failed)?;
        db.commit().await.map_err(failed)?;
        Ok(Some(counter))
    }
}

pub(crate) async fn put(
    db: &mut dyn Transaction,
    routes: &BTreeMap<String, Option<StoredRoute>>,
) -> Result<(), StoreError> {
    let operation = "write the routes";
    let failed = StoreError::query(operation);
    if routes.is_empty() {
        return Ok(());
    }
    let (led, gone): (Vec<_>, Vec<_>) = routes.iter().partition(|(_, stored)| stored.is_some());
    let rows = led.into_iter().filter_map(|(host, stored)| {
        let StoredRoute { route, changed } = stored.as_ref()?;
        Some(row(host, route, *changed))
    });
    let rows = rows.collect::<Result<_, _>>()?;
    put_rows(&mut *db, operation, "routes", 1, rows).await?;
    let gone = gone.into_iter().map(|(host, _)| vec![host.into()]);
    delete(&mut *db, operation, "routes", &["host"], gone.collect()).await?;
    let sql = "UPDATE cluster SET last_route_table = last_route_table + 1";
    db.execute(sql, Vec::new()).await.map_err(failed)?;
    Ok(())
}

fn row(host: &str, route: &Route, changed: u64) -> Result<Columns<'static>, StoreError> {
    Ok(vec![
        ("host", host.into()),
        ("route_json", to_json(route)?.into()),
        ("changed", to_i64("a route's counter", changed)?.into()),
        ("json_version", JSON_VERSION.into()),
    ])
}
