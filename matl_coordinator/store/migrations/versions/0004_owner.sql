-- PostgreSQL's side of what the log's owner need not do: months are made and put away by two
-- functions that roles.sql gives to a superuser, so that their owner changes no table. What the
-- guards look like is said once, for the event trigger that keeps them and for the coordinator.
--
-- Run once, in the transaction of 0004, as 0002_log.sql was in that of 0002.

CREATE OR REPLACE FUNCTION log_make_partition(p_month text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
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
    EXECUTE format('ALTER TABLE %I OWNER TO %I', partition,
        (SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'log_entries'::regclass));
END $$;

CREATE FUNCTION log_drop_partition(p_month text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF p_month IS NULL OR p_month !~ '^[0-9]{4}-(0[1-9]|1[0-2])$' THEN
        RAISE EXCEPTION 'this is no month: %', p_month USING ERRCODE = '22023';
    END IF;
    EXECUTE format('DROP TABLE %I', log_partition(p_month));
END $$;

CREATE OR REPLACE FUNCTION log_drop_month(
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
    PERFORM log_drop_partition(p_month);
    UPDATE log_keys SET wrapped = NULL WHERE month = p_month AND wrapped IS NOT NULL;
END $$;

CREATE FUNCTION log_unguarded() RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    WITH kept (name) AS (
        SELECT unnest(ARRAY['log_nodes', 'log_entries', 'log_keys', 'log_checkpoints',
                            'log_cosignatures'])
    ), ours AS (
        SELECT oid, relname::text AS name, relkind, relpersistence, relrowsecurity
          FROM pg_class
         WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
           AND (relname IN (SELECT name FROM kept UNION ALL SELECT 'log_turn')
                OR relname ~ '^log_entries_[0-9]{4}_[0-9]{2}$')
    -- The bits of pg_trigger.tgtype: 1 each row, 2 before, 8 DELETE, 16 UPDATE, 32 TRUNCATE.
    ), guards (name, calls, fires, on_keys) AS (
        VALUES ('log_keep_rows', 'log_refuse_change()', 1 + 2 + 8 + 16, 1 + 2 + 8),
               ('log_keep_table', 'log_refuse_change()', 2 + 32, 2 + 32),
               ('log_keep_key', 'log_refuse_key_change()', NULL, 1 + 2 + 16)
    )
    SELECT name || ' is missing'
      FROM (SELECT name FROM kept UNION ALL SELECT 'log_turn') AS wanted
     WHERE name NOT IN (SELECT name FROM ours)
    UNION ALL
    SELECT format('the month %s has another name', inhrelid::regclass)
      FROM pg_inherits
     WHERE inhparent IN (SELECT oid FROM ours WHERE name = 'log_entries')
       AND inhrelid NOT IN (SELECT oid FROM ours)
    UNION ALL
    SELECT format('the trigger %s on %s is not as it was made', guards.name, ours.name)
      FROM ours JOIN guards ON CASE ours.name WHEN 'log_keys' THEN on_keys ELSE fires END > 0
     WHERE ours.name <> 'log_turn'
       AND NOT EXISTS (
           SELECT FROM pg_trigger
            WHERE tgrelid = ours.oid AND tgname = guards.name AND tgenabled = 'A'
              AND tgtype = CASE ours.name WHEN 'log_keys' THEN on_keys ELSE fires END
              AND tgfoid = to_regprocedure(calls) AND tgqual IS NULL AND tgattr::text = '')
    UNION ALL
    SELECT format('%s has a trigger of somebody else''s, %s', ours.name, tgname)
      FROM ours JOIN pg_trigger ON tgrelid = ours.oid
     WHERE NOT tgisinternal AND tgname NOT IN (SELECT name FROM guards)
    UNION ALL
    SELECT format('%s has a rule, %s', ours.name, rulename)
      FROM ours JOIN pg_rewrite ON ev_class = ours.oid
    UNION ALL
    SELECT name || ' shows its rows by a policy' FROM ours WHERE relrowsecurity
    UNION ALL
    SELECT name || ' is lost in a crash' FROM ours WHERE relpersistence <> 'p'
$$;
COMMENT ON FUNCTION log_unguarded IS 'What of the guards of the log''s tables is not as it was made.';

-- The row's lock is for whoever may change the row; roles.sql leaves the writer its id to change,
-- which can only be what it is.
CREATE FUNCTION log_take_over() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    taken bigint;
BEGIN
    UPDATE writer SET epoch = epoch + 1 WHERE epoch BETWEEN 0 AND 9007199254740991
        RETURNING epoch INTO taken;
    IF taken IS NULL THEN
        RAISE EXCEPTION 'the writer''s row is missing, or its epoch none that was counted'
            USING ERRCODE = '22023';
    END IF;
    RETURN taken;
END $$;
COMMENT ON FUNCTION log_take_over IS 'Be the study''s one writer from now on; returns the epoch.';

REVOKE ALL ON FUNCTION log_drop_partition, log_unguarded, log_take_over FROM PUBLIC;
