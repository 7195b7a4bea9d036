-- Changes to what every_type.sql made. Runs in its schema, and may run again and again.
UPDATE numbers SET a = -a - 1, k = ~k, f = -f, h = h / 2, l = NOT l;
UPDATE texts SET c = CONCAT(c, '🦭'), m = CONCAT(m, RANDOM_BYTES(100)), n = 'yes', o = 'b,c', i = RANDOM_BYTES(299);
UPDATE times SET c = c + INTERVAL 1 MICROSECOND WHERE id = 2;

SET SESSION binlog_row_value_options = PARTIAL_JSON;
SET SESSION binlog_row_image = MINIMAL;
UPDATE documents SET j = JSON_SET(j, '$.n', JSON_EXTRACT(j, '$.n') + 1, '$.list[1]', 'x') WHERE id = 1;
UPDATE documents SET j = JSON_REPLACE(j, '$.name', 'short'), k = JSON_SET(k, '$[0]', 9) WHERE id = 1;
UPDATE documents SET j = JSON_REMOVE(j, '$.deep.deep') WHERE id = 2;
UPDATE documents SET j = JSON_SET(j, '$.name', REPEAT('again ', 300)) WHERE id = 1;
UPDATE derived SET qty = qty + 1;
SET SESSION binlog_row_value_options = DEFAULT;
SET SESSION binlog_row_image = NOBLOB;
UPDATE texts SET a = 'noblob' WHERE id = 2;
SET SESSION binlog_row_image = DEFAULT;

UPDATE places SET p = ST_GeomFromText('POINT(1 2)', 4326), c = ST_GeomFromText('GEOMETRYCOLLECTION(POINT(3 4))') WHERE id = 2;
INSERT INTO derived (price, qty, hidden, doc, tags) VALUES (1.5, 2, 99, '[]', '[4, 5]');

DELETE FROM parents WHERE id = (SELECT * FROM (SELECT MIN(id) FROM parents) m);
UPDATE parents SET id = id + 1000, name = CONCAT(name, '!') WHERE id % 5 = 0 AND id < 1000;
INSERT INTO parents VALUES (2000 + (SELECT * FROM (SELECT COUNT(*) FROM audit) a), NULL);
UPDATE only_small SET name = 'through a view';

SET @name = CONCAT('p', 4 + (SELECT COUNT(*) FROM audit));
SET @day = DATE '2026-03-01' + INTERVAL (SELECT COUNT(*) FROM audit) MONTH;
SET @sql = CONCAT('ALTER TABLE slices ADD PARTITION (PARTITION ', @name, ' VALUES LESS THAN (''', @day, '''))');
PREPARE s FROM @sql;
EXECUTE s;
INSERT INTO slices SELECT id, @day - INTERVAL 1 DAY, 'new' FROM parents;
ALTER TABLE slices TRUNCATE PARTITION p2;
DELETE FROM no_key LIMIT 1;
INSERT INTO no_key VALUES (5, 'five'), (5, 'five');

CALL grow(3);
START TRANSACTION;
INSERT INTO audit (what) VALUES ('kept');
SAVEPOINT one;
INSERT INTO audit (what) VALUES ('rolled back to a savepoint');
DELETE FROM children;
ROLLBACK TO one;
COMMIT;
START TRANSACTION;
DELETE FROM audit;
ROLLBACK;

CREATE TEMPORARY TABLE scratch (id INT PRIMARY KEY, v TEXT);
INSERT INTO scratch SELECT id, name FROM parents;
INSERT INTO audit (what) SELECT CONCAT('from scratch ', COUNT(*)) FROM scratch;
DROP TEMPORARY TABLE scratch;
-- As statements, a temporary table exists on the replica as well, and is left behind by the end of this session.
SET SESSION binlog_format = STATEMENT;
CREATE TEMPORARY TABLE scratch (id INT PRIMARY KEY, v TEXT);
INSERT INTO scratch VALUES (1, 'statement'), (2, 'format');
SET @user_variable = 'über', @n = 4.25;
INSERT INTO audit (what) SELECT CONCAT(v, @user_variable, @n, LAST_INSERT_ID()) FROM scratch ORDER BY id;
