-- The life of this store, of which generations are (model::Incarnation): another one after a restore. And the routes, a row for
-- each host: those that the one row of before had change once, in the first table of the new incarnation.

ALTER TABLE cluster ADD COLUMN incarnation TEXT NOT NULL DEFAULT '';
UPDATE cluster SET incarnation = lower(hex(randomblob(8)));
-- The counter of the newest route table (scheduler::routes::RouteIndex).
ALTER TABLE cluster ADD COLUMN last_route_table INTEGER NOT NULL DEFAULT 0;
UPDATE cluster SET last_route_table = COALESCE((SELECT generation FROM route_table), 0);

CREATE TABLE routes (
    host            TEXT PRIMARY KEY,
    route_json      TEXT NOT NULL,              -- api::edge::Route
    changed         INTEGER NOT NULL,           -- the counter of the table in which it led there first
    json_version    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO routes (host, route_json, changed, json_version)
SELECT route.key, route.value, route_table.generation, route_table.json_version
FROM route_table, json_each(CASE WHEN json_valid(routes_json) THEN routes_json ELSE '{}' END) AS route;

DROP TABLE route_table;
