-- PostgreSQL's side of the log: how it grows, how a month of it is put away, and what keeps
-- everything else from happening. SQLite has none of this.
--
-- Run once, in the transaction of 0002, with a search_path of the tables' schema and pg_temp. Every
-- function keeps that path, so a caller cannot put tables of its own in the way. Functions that
-- callers may use run as their owner; deploy/postgresql/roles.sql says who may call which.

-- Any number that nobody else who uses the database locks.
CREATE FUNCTION log_lock() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(x'6D61746D'::bigint);
    -- A statement of its own, so that it sees what was committed while this one waited.
    RETURN (SELECT coalesce(max(node_index) + 1, 0) FROM log_nodes WHERE level = 0);
END $$;
COMMENT ON FUNCTION log_lock IS
    'Let nobody else append until the transaction ends; returns the size of the log.';

CREATE FUNCTION log_refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION 'the log is only ever appended to: % of % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE FUNCTION log_refuse_key_change() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.name <> OLD.name OR NEW.month <> OLD.month OR OLD.wrapped IS NULL THEN
        RAISE EXCEPTION 'a data key keeps its name and month, and does not come back once erased'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- Partitions get the triggers for rows of their own, but not those for TRUNCATE.
DO $$
DECLARE
    guarded text;
BEGIN
    FOREACH guarded IN ARRAY
        ARRAY['log_nodes', 'log_entries', 'log_keys', 'log_checkpoints', 'log_cosignatures']
    LOOP
        EXECUTE format(
            'CREATE TRIGGER log_keep_rows BEFORE %s ON %I FOR EACH ROW '
            'EXECUTE FUNCTION log_refuse_change()',
            CASE guarded WHEN 'log_keys' THEN 'DELETE' ELSE 'UPDATE OR DELETE' END, guarded);
        EXECUTE format(
            'CREATE TRIGGER log_keep_table BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
            'EXECUTE FUNCTION log_refuse_change()', guarded);
        -- ALWAYS: also under session_replication_role = replica.
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER log_keep_rows', guarded);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER log_keep_table', guarded);
    END LOOP;
END $$;
CREATE TRIGGER log_keep_key BEFORE UPDATE ON log_keys FOR EACH ROW
    EXECUTE FUNCTION log_refuse_key_change();
ALTER TABLE log_keys ENABLE ALWAYS TRIGGER log_keep_key;

-- Functions without a path of their own are for the others here, whose path they run under.
CREATE FUNCTION log_partition(p_month text) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT 'log_entries_' || replace(p_month, '-', '_')
$$;

CREATE FUNCTION log_make_partition(p_month text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    partition text := log_partition(p_month);
BEGIN
    IF p_month IS NULL OR p_month !~ '^[0-9]{4}-(0[1-9]|1[0-2])$' THEN
        RAISE EXCEPTION 'a leaf begins with the time of its entry' USING ERRCODE = '22023';
    END IF;
    EXECUTE format(
        'CREATE TABLE %I PARTITION OF log_entries FOR VALUES IN (%L)', partition, p_month);
    EXECUTE format(
        'CREATE TRIGGER log_keep_table BEFORE TRUNCATE ON %I FOR EACH STATEMENT '
        'EXECUTE FUNCTION log_refuse_change()', partition);
    -- At once: an event trigger of roles.sql refuses a table with only one of them.
    EXECUTE format(
        'ALTER TABLE %I ENABLE ALWAYS TRIGGER log_keep_rows, '
        'ENABLE ALWAYS TRIGGER log_keep_table', partition);
END $$;

CREATE FUNCTION log_append(p_prev bigint, p_leaves bytea[], p_payloads bytea[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    size bigint := log_lock();
    months text[];
    -- Hashes of 32 bytes each, one after the other: slicing costs less than an array's elements.
    hashes bytea;
    nodes bytea := '';
    counts integer[] := '{}';
    first bigint := p_prev;
BEGIN
    IF size IS DISTINCT FROM p_prev THEN
        RAISE EXCEPTION 'the log has % entries, not %: somebody else appended', size, p_prev
            USING ERRCODE = 'serialization_failure';
    END IF;
    IF cardinality(p_leaves) <> cardinality(p_payloads) THEN
        RAISE EXCEPTION 'every leaf has one payload' USING ERRCODE = '22023';
    END IF;
    -- Canonical JSON, whose first key is "at": the month is the leaf's own word.
    SELECT array_agg(
               CASE WHEN substring(leaf FOR 7) = '{"at":"'::bytea
                    THEN convert_from(substring(leaf FROM 8 FOR 7), 'SQL_ASCII') END
               ORDER BY place),
           string_agg(sha256('\x00'::bytea || leaf), ''::bytea ORDER BY place)
      INTO months, hashes
      FROM unnest(p_leaves) WITH ORDINALITY AS given (leaf, place);
    PERFORM log_make_partition(month) FROM (SELECT DISTINCT unnest(months) AS month) AS named
      WHERE to_regclass(log_partition(month)) IS NULL;
    INSERT INTO log_entries (leaf_index, month, leaf, payload)
    SELECT p_prev + place - 1, month, leaf, payload
      FROM unnest(p_leaves, p_payloads, months)
           WITH ORDINALITY AS given (leaf, payload, month, place);
    -- The tree is not taken from the caller: each level's nodes are the hashes of pairs below.
    WHILE length(hashes) > 0 LOOP
        nodes := nodes || hashes;
        counts := counts || length(hashes) / 32;
        IF first % 2 = 1 THEN
            hashes := (SELECT hash FROM log_nodes
                        WHERE level = cardinality(counts) - 1 AND node_index = first - 1) || hashes;
        END IF;
        IF length(hashes) < 128 THEN
            hashes := CASE WHEN length(hashes) >= 64
                      THEN sha256('\x01'::bytea || substring(hashes FOR 64)) END;
        ELSE
            SELECT string_agg(
                       sha256('\x01'::bytea || substring(hashes FROM 64 * pair + 1 FOR 64)),
                       ''::bytea ORDER BY pair)
              INTO hashes
              FROM generate_series(0, length(hashes) / 64 - 1) AS pair;
        END IF;
        first := first / 2;
    END LOOP;
    INSERT INTO log_nodes (level, node_index, hash)
    SELECT depth - 1, (p_prev >> (depth - 1)) + place,
           substring(nodes FROM 32 * (before + place) + 1 FOR 32)
      FROM (SELECT depth::integer AS depth, count,
                   (sum(count) OVER (ORDER BY depth) - count)::integer AS before
              FROM unnest(counts) WITH ORDINALITY AS complete (count, depth)) AS runs,
           generate_series(0, count - 1) AS place;
END $$;
COMMENT ON FUNCTION log_append IS
    'Append leaves and payloads to the log of p_prev leaves; 40001 where it has another size.';

-- What the owner of the database insists on, whatever a caller passes; roles.sql sets it.
CREATE FUNCTION log_floor(OUT years integer, OUT cosignatures integer)
LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS $$ SELECT 6, 1 $$;

CREATE FUNCTION log_require_expired(p_month text, p_years integer) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    kept_until timestamp := to_date(p_month, 'YYYY-MM')
        + make_interval(years => greatest(p_years, (SELECT years FROM log_floor())), months => 1);
BEGIN
    IF now() AT TIME ZONE 'UTC' < kept_until THEN
        RAISE EXCEPTION 'the entries of % are kept until %', p_month, kept_until
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END $$;

CREATE FUNCTION log_append_order(p_event text, p_prev bigint, p_leaf bytea, p_payload bytea)
RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    -- No other text of a leaf can contain this: quotes inside are escaped.
    IF position(convert_to(format('"event":"%s"', p_event), 'UTF8') IN p_leaf) = 0 THEN
        RAISE EXCEPTION 'this needs a leaf of event %', p_event USING ERRCODE = '22023';
    END IF;
    PERFORM log_append(p_prev, ARRAY[p_leaf], ARRAY[p_payload]);
END $$;

CREATE FUNCTION log_erase_key(
    p_month text, p_years integer, p_prev bigint, p_leaf bytea, p_payload bytea
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_require_expired(p_month, p_years);
    PERFORM log_append_order('month_key_erased', p_prev, p_leaf, p_payload);
    UPDATE log_keys SET wrapped = NULL WHERE month = p_month AND wrapped IS NOT NULL;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'there is no data key of %', p_month USING ERRCODE = 'no_data_found';
    END IF;
END $$;
COMMENT ON FUNCTION log_erase_key IS
    'Make the entries of an expired month unreadable, here and in every backup of the payloads.';

CREATE FUNCTION log_drop_month(
    p_month text, p_years integer, p_cosignatures integer,
    p_prev bigint, p_leaf bytea, p_payload bytea
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    wanted integer := greatest(p_cosignatures, (SELECT cosignatures FROM log_floor()));
    last bigint;
BEGIN
    PERFORM log_require_expired(p_month, p_years);
    SELECT max(leaf_index) INTO last FROM log_entries WHERE month = p_month;
    IF last IS NULL THEN
        RAISE EXCEPTION 'the log has no entries of %', p_month USING ERRCODE = 'no_data_found';
    END IF;
    -- How many lines there are. What they are worth, only the caller can tell.
    IF NOT EXISTS (
        SELECT FROM log_cosignatures WHERE size > last GROUP BY size HAVING count(*) >= wanted
    ) THEN
        RAISE EXCEPTION 'no checkpoint with % cosignatures covers all entries of %', wanted, p_month
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM log_append_order('month_dropped', p_prev, p_leaf, p_payload);
    EXECUTE format('DROP TABLE %I', log_partition(p_month));
    UPDATE log_keys SET wrapped = NULL WHERE month = p_month AND wrapped IS NOT NULL;
END $$;
COMMENT ON FUNCTION log_drop_month IS
    'Remove leaves and payloads of an expired month under a cosigned checkpoint; hashes stay.';

CREATE FUNCTION log_rewrap_keys(
    p_names text[], p_wrapped bytea[], p_wrapped_by text,
    p_prev bigint, p_leaf bytea, p_payload bytea
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_append_order('log_keys_rewrapped', p_prev, p_leaf, p_payload);
    UPDATE log_keys AS kept SET wrapped = given.wrapped, wrapped_by = p_wrapped_by
      FROM unnest(p_names, p_wrapped) AS given (name, wrapped)
     WHERE kept.name = given.name AND kept.wrapped IS NOT NULL;
    IF EXISTS (
        SELECT FROM log_keys WHERE wrapped IS NOT NULL AND wrapped_by <> p_wrapped_by
    ) THEN
        RAISE EXCEPTION 'a data key would stay under the old key' USING ERRCODE = '22023';
    END IF;
END $$;
COMMENT ON FUNCTION log_rewrap_keys IS
    'Put all data keys under another key-encryption key at once; leaves and payloads stay.';

-- Functions are everybody's unless this is said.
DO $$
DECLARE
    made regprocedure;
BEGIN
    FOR made IN
        SELECT oid FROM pg_proc
         WHERE pronamespace = current_schema()::regnamespace AND proname LIKE 'log\_%'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', made);
    END LOOP;
END $$;
