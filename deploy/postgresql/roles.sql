-- Who may do what in the coordinator's database. Run as a superuser, after every
-- "matl-coordinator migrate"; running it again without settings changes nothing:
--
--     psql -d matl -f roles.sql [-v retention_years=7] [-v cosignatures=2] [-v schema=public]
--
-- Four roles, which get their way to log in (a password, a certificate) from you:
--
--     matl_log_owner       owns the tables and most functions; cannot log in, changes no definition
--     matl_log_writer      the coordinator: writes the study, appends to the log, reads both
--     matl_log_reader      auditors: reads the log
--     matl_log_retention   puts away expired months of the log, and reads it
--
-- retention_years and cosignatures are the least that log_drop_month and log_erase_key insist on,
-- whatever they are called with: 7 and 1 at first. What is not given stays as it is; less than what
-- is there is refused, unless -v force=1 is given as well. Set cosignatures to a quorum of your
-- hospitals: more than (n + f) / 2 of n witnesses, f being rounds.byzantine.

\set ON_ERROR_STOP on
\if :{?schema} \else \set schema public \endif
\if :{?force} \else \set force 0 \endif

BEGIN;
SET LOCAL client_min_messages = warning;
SELECT set_config('search_path', quote_ident(:'schema') || ', pg_temp', true) \g /dev/null

-- Only this script makes the one, so what the other says was chosen.
SELECT CASE WHEN chosen THEN years ELSE 7 END AS kept_years,
       CASE WHEN chosen THEN cosignatures ELSE 1 END AS kept_cosignatures, chosen
  FROM log_floor(), (SELECT to_regprocedure('matl_log_refuse_drop()') IS NOT NULL AS chosen) AS before
\gset
\if :{?retention_years} \else \set retention_years :kept_years \endif
\if :{?cosignatures} \else \set cosignatures :kept_cosignatures \endif
SELECT 'DO $$ BEGIN RAISE EXCEPTION ''the database insists on more already; -v force=1 takes less'' '
       'USING ERRCODE = ''restrict_violation''; END $$'
 WHERE :'chosen'::boolean AND NOT :'force'::boolean
   AND ((:'retention_years')::integer < :kept_years OR (:'cosignatures')::integer < :kept_cosignatures)
\gexec
SELECT (:'retention_years')::integer < 6 AS short, (:'cosignatures')::integer < 1 AS alone
\gset
\if :short \warn 'WARNING: HIPAA wants documentation kept for six years (45 CFR 164.316(b)(2)(i))' \endif
\if :alone \warn 'WARNING: a month may be dropped that no hospital has cosigned' \endif

SELECT format('CREATE ROLE %I %s', name, CASE name WHEN 'matl_log_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END)
  FROM unnest(ARRAY['matl_log_owner', 'matl_log_writer', 'matl_log_reader', 'matl_log_retention'])
       AS needed (name)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

-- Made again below; away while this script works.
DROP EVENT TRIGGER IF EXISTS matl_log_keep_objects;
DROP EVENT TRIGGER IF EXISTS matl_log_keep_guards;
DROP EVENT TRIGGER IF EXISTS matl_log_keep_values;
DROP EVENT TRIGGER IF EXISTS matl_log_keep_definitions;

-- Everything is the owner's, but for what triggers call and what makes and puts away months: the
-- owner changes no definition, and who owns a function can replace it.
CREATE TEMPORARY TABLE ours ON COMMIT DROP AS
SELECT oid, oid::regclass::text AS name,
       relname IN ('study', 'models', 'rounds', 'updates', 'trust') AS is_study,
       relname = 'writer' AS is_writer,
       relispartition AS is_month
  FROM pg_class
 WHERE relnamespace = :'schema'::regnamespace AND relkind IN ('r', 'p')
   AND (relname IN ('writer', 'study', 'models', 'rounds', 'updates', 'trust', 'alembic_version',
                    'log_nodes', 'log_keys', 'log_entries', 'log_checkpoints', 'log_cosignatures',
                    'log_turn')
        OR relname ~ '^log_entries_[0-9]{4}_[0-9]{2}$');
SELECT format('ALTER TABLE %s OWNER TO matl_log_owner', name) FROM ours \gexec
SELECT format('ALTER FUNCTION %s OWNER TO %I', oid::regprocedure,
              CASE WHEN proname LIKE 'log\_refuse\_%' OR proname LIKE 'log\_%partition'
                        OR proname = 'log_unguarded'
                   THEN current_user ELSE 'matl_log_owner' END)
  FROM pg_proc WHERE pronamespace = :'schema'::regnamespace AND proname LIKE 'log\_%'
\gexec
REVOKE CREATE ON SCHEMA :"schema" FROM PUBLIC, matl_log_owner;
GRANT USAGE ON SCHEMA :"schema"
   TO matl_log_owner, matl_log_writer, matl_log_reader, matl_log_retention;

-- The others have what is granted here and nothing else.
SELECT format('REVOKE ALL ON %s FROM PUBLIC, matl_log_writer, matl_log_reader, matl_log_retention', name)
  FROM ours
\gexec
-- Months are read, like they are written, through their parent alone.
-- The study's tables are not encrypted, and hold much of what entries say.
SELECT format('GRANT SELECT ON %s TO matl_log_reader', name)
  FROM ours WHERE NOT is_month AND NOT is_study AND NOT is_writer AND name NOT LIKE '%log\_turn'
\gexec
GRANT matl_log_reader TO matl_log_writer, matl_log_retention;
SELECT format('GRANT SELECT, INSERT, UPDATE ON %s TO matl_log_writer', name)
  FROM ours WHERE is_study
\gexec
-- The epoch goes up by log_take_over alone. Whoever locks the row needs one column to change.
GRANT SELECT, UPDATE (id) ON writer TO matl_log_writer;
GRANT EXECUTE ON FUNCTION log_take_over TO matl_log_writer;
GRANT EXECUTE ON FUNCTION log_unguarded TO matl_log_reader;
GRANT EXECUTE ON FUNCTION log_refuse_change, log_refuse_key_change, log_partition,
    log_make_partition, log_drop_partition TO matl_log_owner;
GRANT EXECUTE ON FUNCTION log_lock, log_put_key TO matl_log_writer, matl_log_retention;
GRANT EXECUTE ON FUNCTION log_append, log_put_checkpoint, log_put_cosignature TO matl_log_writer;
GRANT EXECUTE ON FUNCTION log_drop_month, log_erase_key, log_rewrap_keys TO matl_log_retention;

SELECT format(
    'CREATE OR REPLACE FUNCTION log_floor(OUT years integer, OUT cosignatures integer) '
    'LANGUAGE sql IMMUTABLE SET search_path FROM CURRENT AS %L',
    format('SELECT %s, %s', (:'retention_years')::integer, (:'cosignatures')::integer))
\gexec

-- Below is only for a superuser to make: the owner cannot switch it off. The log's objects stay,
-- but for a month that the same transaction logs as dropped.
CREATE OR REPLACE FUNCTION matl_log_refuse_drop() RETURNS event_trigger
LANGUAGE plpgsql SECURITY INVOKER SET search_path FROM CURRENT AS $$
DECLARE
    gone text;
    months text[];
BEGIN
    SELECT string_agg(object_identity, ', '),
           array_agg(DISTINCT object_name) FILTER (WHERE object_type = 'table')
      INTO gone, months
      FROM pg_event_trigger_dropped_objects()
     WHERE NOT is_temporary
       AND (object_type IN ('table', 'trigger', 'table column', 'table constraint', 'index')
            AND object_identity ~ ('(^| )' || current_schema() || '\.(pk_|ck_|fk_|ix_)?log_')
            OR object_type = 'function' AND object_identity LIKE current_schema() || '.log\_%');
    IF gone IS NULL THEN
        RETURN;
    END IF;
    IF cardinality(months) = 1 AND months[1] ~ '^log_entries_[0-9]{4}_[0-9]{2}$' THEN
        -- Only then the tables that this looks into are still there.
        IF EXISTS (
            SELECT FROM log_entries
             WHERE leaf_index = (SELECT max(node_index) FROM log_nodes WHERE level = 0)
               AND position('"event":"month_dropped"'::bytea IN leaf) > 0
               AND xmin::text::bigint = pg_current_xact_id()::text::bigint % (1::bigint << 32)
        ) THEN
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION 'the log is never dropped: %', gone USING ERRCODE = 'restrict_violation';
END $$;

-- With the rights of who made it: whoever else changes a table here may not look at the log's.
CREATE OR REPLACE FUNCTION matl_log_refuse_disarming() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    bare text := (SELECT string_agg(what, '; ') FROM log_unguarded() AS what);
BEGIN
    IF bare IS NOT NULL THEN
        RAISE EXCEPTION 'what keeps the log stays as it was made: %', bare
            USING ERRCODE = 'restrict_violation';
    END IF;
END $$;

-- ALTER TABLE ... TYPE ... USING changes rows past their triggers; SET UNLOGGED gives them up.
CREATE OR REPLACE FUNCTION matl_log_refuse_rewrite() RETURNS event_trigger
LANGUAGE plpgsql SECURITY INVOKER SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_class JOIN pg_proc ON relnamespace = pronamespace
         WHERE pg_class.oid = pg_event_trigger_table_rewrite_oid() AND relname ~ '^log_'
           AND proname = 'matl_log_refuse_rewrite'
    ) THEN
        RAISE EXCEPTION 'the log is never rewritten' USING ERRCODE = 'restrict_violation';
    END IF;
END $$;

-- Whoever has the rights of the log's owner, and is no superuser, defines nothing in this database.
CREATE OR REPLACE FUNCTION matl_log_refuse_owner() RETURNS event_trigger
LANGUAGE plpgsql SECURITY INVOKER SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AND EXISTS (
        SELECT FROM pg_proc AS own
          JOIN (SELECT relnamespace, relname, relowner FROM pg_class WHERE relkind IN ('r', 'p')
                UNION ALL SELECT pronamespace, proname, proowner FROM pg_proc)
               AS logs (namespace, name, owner) ON namespace = own.pronamespace
         WHERE own.proname = 'matl_log_refuse_owner' AND name ~ '^log_'
           AND pg_has_role(current_user, owner, 'USAGE')
    ) THEN
        RAISE EXCEPTION '% is for a superuser: % owns the log', tg_tag, current_user
            USING ERRCODE = 'restrict_violation';
    END IF;
END $$;

REVOKE ALL ON FUNCTION matl_log_refuse_drop, matl_log_refuse_disarming, matl_log_refuse_rewrite,
    matl_log_refuse_owner FROM PUBLIC;
CREATE EVENT TRIGGER matl_log_keep_objects ON sql_drop EXECUTE FUNCTION matl_log_refuse_drop();
CREATE EVENT TRIGGER matl_log_keep_guards ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'ALTER TRIGGER', 'CREATE RULE')
    EXECUTE FUNCTION matl_log_refuse_disarming();
CREATE EVENT TRIGGER matl_log_keep_values ON table_rewrite
    EXECUTE FUNCTION matl_log_refuse_rewrite();
CREATE EVENT TRIGGER matl_log_keep_definitions ON ddl_command_start
    EXECUTE FUNCTION matl_log_refuse_owner();
ALTER EVENT TRIGGER matl_log_keep_objects ENABLE ALWAYS;
ALTER EVENT TRIGGER matl_log_keep_guards ENABLE ALWAYS;
ALTER EVENT TRIGGER matl_log_keep_values ENABLE ALWAYS;
ALTER EVENT TRIGGER matl_log_keep_definitions ENABLE ALWAYS;
COMMIT;
\echo 'The database insists on' :retention_years 'years and' :cosignatures 'cosignatures.'
