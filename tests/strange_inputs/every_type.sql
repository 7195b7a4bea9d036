-- Tables of every column type, and whatever can hang on a table. Runs in a schema of its own.
SET time_zone = '+05:30';

CREATE TABLE numbers (
    id BIGINT UNSIGNED PRIMARY KEY,
    a TINYINT, b SMALLINT UNSIGNED, c MEDIUMINT, d INT UNSIGNED ZEROFILL, e BIGINT,
    f DECIMAL(65, 30), g DECIMAL(5), h FLOAT, i DOUBLE, j BIT(1), k BIT(64), l BOOLEAN
);
INSERT INTO numbers VALUES
    (0, -128, 65535, -8388608, 4294967295, -9223372036854775808,
     99999999999999999999999999999999999.999999999999999999999999999999, -99999, -3.4e38, 1.7976931348623157e308, b'1', ~0, TRUE),
    (18446744073709551615, 127, 0, 8388607, 0, 9223372036854775807,
     -0.000000000000000000000000000001, 0, 1.2e-38, -2.2250738585072014e-308, b'0', 0, FALSE),
    (1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

CREATE TABLE texts (
    id INT PRIMARY KEY AUTO_INCREMENT,
    a CHAR(10), b VARCHAR(20) CHARACTER SET latin1, c VARCHAR(1000) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_as_cs,
    d TINYTEXT, e TEXT, f MEDIUMTEXT, g LONGTEXT, h BINARY(16), i VARBINARY(300),
    j TINYBLOB, k BLOB, l MEDIUMBLOB, m LONGBLOB,
    n ENUM('no', 'yes', 'ja – oui'), o SET('a', 'b', 'c', 'd'),
    UNIQUE (e(20)), FULLTEXT (f)
);
INSERT INTO texts (a, b, c, d, e, f, g, h, i, j, k, l, m, n, o) VALUES
    ('trailing  ', 'Grüße', '🐬 ​e\u0301 \\ '' "', '', 'first', 'full text search', REPEAT('字', 70000), UUID_TO_BIN(UUID()), REPEAT(x'00ff', 150),
     x'', RANDOM_BYTES(1000), REPEAT(RANDOM_BYTES(1000), 100), REPEAT(RANDOM_BYTES(1024), 1500), 'ja – oui', 'a,d'),
    ('', '', '', NULL, 'second', NULL, NULL, NULL, '', NULL, '', NULL, '', 'no', '');

CREATE TABLE times (
    id INT PRIMARY KEY AUTO_INCREMENT,
    a DATE, b TIME, c TIME(6), d DATETIME, e DATETIME(6), f TIMESTAMP NULL, g TIMESTAMP(6) NULL, h YEAR,
    i TIMESTAMP(3) DEFAULT CURRENT_TIMESTAMP(3) ON UPDATE CURRENT_TIMESTAMP(3)
);
INSERT INTO times (a, b, c, d, e, f, g, h) VALUES
    ('1000-01-01', '-838:59:59', '838:59:58.999999', '9999-12-31 23:59:59', '1000-01-01 00:00:00.000001',
     '1970-01-01 05:30:01', '2038-01-19 08:44:07.499999', 1901),
    ('9999-12-31', '00:00:00', '-00:00:00.000001', NOW(), NOW(6), NOW(), NOW(6), 2155);
SET SESSION sql_mode = '';
INSERT INTO times (a, d, h) VALUES ('0000-00-00', '2026-02-00', 0);
SET SESSION sql_mode = DEFAULT;

CREATE TABLE documents (id INT PRIMARY KEY, j JSON, k JSON DEFAULT (JSON_ARRAY(1, 'x')));
INSERT INTO documents (id, j) VALUES
    (1, JSON_OBJECT('name', REPEAT('long ', 500), 'n', 1, 'list', JSON_ARRAY(1, 2.5, NULL, TRUE, 'é'))),
    (2, '{"deep": {"deep": {"deep": [[[{}]]]}}, "date": "2026-01-01"}'), (3, 'null'), (4, NULL);

CREATE TABLE places (id INT PRIMARY KEY, p POINT NOT NULL SRID 4326, g GEOMETRY, c GEOMETRYCOLLECTION, SPATIAL INDEX (p));
INSERT INTO places VALUES
    (1, ST_GeomFromText('POINT(52.5 13.4)', 4326), ST_GeomFromText('POLYGON((0 0,0 9,9 9,9 0,0 0),(1 1,1 2,2 2,1 1))'),
     ST_GeomFromText('GEOMETRYCOLLECTION(POINT(1 1),LINESTRING(0 0,1 1,2 0))')),
    (2, ST_GeomFromText('POINT(-90 180)', 4326), NULL, ST_GeomFromText('GEOMETRYCOLLECTION EMPTY'));

CREATE TABLE derived (
    id INT AUTO_INCREMENT, price DECIMAL(10, 2), qty INT, hidden INT INVISIBLE DEFAULT 7,
    total DECIMAL(20, 2) AS (price * qty) STORED, label VARCHAR(50) AS (CONCAT('n° ', qty)) VIRTUAL,
    made CHAR(36) DEFAULT (UUID()), doc JSON, tags JSON,
    PRIMARY KEY (id), KEY by_label (label), KEY by_total (total) INVISIBLE, KEY by_expression ((price + qty), (LOWER(made))),
    KEY by_tags ((CAST(tags AS UNSIGNED ARRAY))), CHECK (qty >= 0), CONSTRAINT cheap CHECK (price < 1000000) NOT ENFORCED
) COMMENT = 'with ''quotes'' and `ticks`';
INSERT INTO derived (price, qty, doc, tags) VALUES (9.99, 3, '{"a": 1}', '[1, 2, 3]'), (2000000, 0, NULL, NULL);
INSERT INTO derived (price, qty, hidden) VALUES (1, 1, NULL);

CREATE TABLE parents (id INT PRIMARY KEY, name VARCHAR(20));
CREATE TABLE children (
    id INT PRIMARY KEY AUTO_INCREMENT, parent INT, other INT,
    FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE CASCADE ON UPDATE CASCADE
);
-- A table of its own: where one has CASCADE and SET NULL to the same parent, a 9.7.4 source forgets SET NULL, and its replica does not.
CREATE TABLE friends (
    id INT PRIMARY KEY AUTO_INCREMENT, parent INT,
    CONSTRAINT lets_go FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE SET NULL ON UPDATE SET NULL
);
CREATE TABLE grandchildren (id INT PRIMARY KEY, child INT, FOREIGN KEY (child) REFERENCES children (id) ON DELETE CASCADE);
INSERT INTO parents SELECT n, CONCAT('p', n) FROM (WITH RECURSIVE s AS (SELECT 1 n UNION ALL SELECT n + 1 FROM s WHERE n < 40) SELECT n FROM s) s;
INSERT INTO children (parent, other) SELECT p.id, q.id FROM parents p, parents q WHERE (p.id * q.id) % 7 = 0;
INSERT INTO friends (parent) SELECT id FROM parents;
INSERT INTO grandchildren SELECT id, id FROM children;

CREATE TABLE slices (id INT, day DATE, v VARCHAR(20), PRIMARY KEY (id, day)) PARTITION BY RANGE COLUMNS (day)
    SUBPARTITION BY HASH (id) SUBPARTITIONS 2 (
    PARTITION p1 VALUES LESS THAN ('2026-01-01'), PARTITION p2 VALUES LESS THAN ('2026-02-01'), PARTITION p3 VALUES LESS THAN ('2026-03-01'));
INSERT INTO slices SELECT id, DATE '2025-12-20' + INTERVAL id DAY, name FROM parents;

CREATE TABLE no_key (a INT, b VARCHAR(10)) ROW_FORMAT = COMPRESSED;
INSERT INTO no_key VALUES (1, 'twice'), (1, 'twice'), (NULL, NULL);

CREATE TABLE audit (id INT PRIMARY KEY AUTO_INCREMENT, what VARCHAR(100));
CREATE TRIGGER parents_changed AFTER UPDATE ON parents FOR EACH ROW BEGIN
    INSERT INTO audit (what) VALUES (CONCAT(OLD.name, ' -> ', NEW.name));
    INSERT INTO audit (what) VALUES ('second statement');
END;
CREATE TRIGGER parents_checked BEFORE INSERT ON parents FOR EACH ROW SET NEW.name = COALESCE(NEW.name, 'nameless');
CREATE SQL SECURITY INVOKER VIEW busy AS
    SELECT p.id, p.name, COUNT(*) AS n FROM parents p JOIN children c ON c.parent = p.id GROUP BY p.id, p.name;
CREATE VIEW only_small AS SELECT id, name FROM parents WHERE id < 10 WITH CASCADED CHECK OPTION;
CREATE FUNCTION twice(x INT) RETURNS INT DETERMINISTIC RETURN 2 * x;
CREATE PROCEDURE grow(n INT) BEGIN
    DECLARE i INT DEFAULT 0;
    WHILE i < n DO
        INSERT INTO audit (what) VALUES (CONCAT('grow ', twice(i), ' ', UUID(), RAND()));
        SET i = i + 1;
    END WHILE;
END;
