-- Who may do what in the coordinator's database. Run as a superuser, after every
-- "matl-coordinator migrate"; running it again changes nothing:
--
--     psql -d matl -f roles.sql [-v retention_years=7] [-v cosignatures=2] [-v schema=public]
--
-- Four roles, which get their way to log in (a password, a certificate) from you:
--
--     matl_log_owner       owns all tables and functions; cannot log in
--     matl_log_writer      the coordinator: writes the study, appends to the log, reads both
--     matl_log_reader      auditors: reads the log
--     matl_log_retention   puts away expired months of the log, and reads it
--
-- retention_years and cosignatures are the least that log_drop_month and log_erase_key insist on,
-- whatever they are called with. Set cosignatures to a quorum of your hospitals: more than
-- (n + f) / 2 of n witnesses, f being rounds.byzantine.

\set ON_ERROR_STOP on
\if :{?schema} \else \set schema public \endif
\if :{?retention_years} \else \set retention_years 7 \endif
\if :{?cosignatures} \else \set cosignatures 1 \endif

BEGIN;
SET LOCAL client_min_messages = warning;
SELECT set_config('search_path', quote_ident(:'schema') || ', pg_temp', true) \g /dev/null

SELECT format('CREATE ROLE %I %s', name, CASE name WHEN 'matl_log_owner' THEN 'NOLOGIN' ELSE 'LOGIN' END)
  FROM unnest(ARRAY['matl_log_owner', 'matl_log_writer', 'matl_log_reader', 'matl_log_retention'])
       AS needed (name)
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec

-- Made again below; away while this script works.
DROP EVENT TRIGGER IF EXISTS matl_log_keep_objects;
DROP EVENT TRIGGER IF EXISTS matl_log_keep_guards;

-- Everything is the owner's, but for what triggers call: who owns a function can replace it.
CREATE TEMPORARY TABLE ours ON COMMIT DROP AS
SELECT oid, oid::regclass::text AS name,
       relname IN ('writer', 'study', 'models', 'rounds', 'updates', 'trust') AS is_study,
       relispartition AS is_month
  FROM pg_class
 WHERE relnamespace = :'schema'::regnamespace AND relkind IN ('r', 'p')
   AND (relname IN ('writer', 'study', 'models', 'rounds', 'updates', 'trust', 'alembic_version',
                    'log_nodes', 'log_keys', 'log_entries', 'log_checkpoints', 'log_cosignatures',
                    'log_turn')
        OR relname ~ '^log_entries_[0-9]{4}_[0-9]{2}$');
SELECT format('ALTER TABLE %s OWNER TO matl_log_owner', name) FROM ours \gexec
SELECT format('ALTER FUNCTION %s OWNER TO %I', oid::regprocedure,
              CASE WHEN proname LIKE 'log\_refuse\_%' THEN current_user ELSE 'matl_log_owner' END)
  FROM pg_proc WHERE pronamespace = :'schema'::regnamespace AND proname LIKE 'log\_%'
\gexec
REVOKE CREATE ON SCHEMA :"schema" FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA :"schema" TO matl_log_owner;
GRANT USAGE ON SCHEMA :"schema" TO matl_log_writer, matl_log_reader, matl_log_retention;

-- The others have what is granted here and nothing else.
SELECT format('REVOKE ALL ON %s FROM PUBLIC, matl_log_writer, matl_log_reader, matl_log_retention', name)
  FROM ours
\gexec
-- Months are read, like they are written, through their parent alone.
-- The study's tables are not encrypted, and hold much of what entries say.
SELECT format('GRANT SELECT ON %s TO matl_log_reader', name)
  FROM ours WHERE NOT is_month AND NOT is_study AND name NOT LIKE '%log\_turn'
\gexec
GRANT matl_log_reader TO matl_log_writer, matl_log_retention;
SELECT format('GRANT SELECT, INSERT, UPDATE ON %s TO matl_log_writer', name)
  FROM ours WHERE is_study
\gexec
GRANT EXECUTE ON FUNCTION log_refuse_change, log_refuse_key_change TO matl_log_owner;
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

CREATE OR REPLACE FUNCTION matl_log_refuse_disarming() RETURNS event_trigger
LANGUAGE plpgsql SECURITY INVOKER SET search_path FROM CURRENT AS $$
DECLARE
    bare text;
BEGIN
    -- Under another name, a table would not be looked for below.
    IF (SELECT count(*) FROM pg_class
         WHERE relnamespace = current_schema()::regnamespace AND relname IN
               ('log_nodes', 'log_keys', 'log_entries', 'log_checkpoints', 'log_cosignatures',
                'log_turn')) < 6
       OR EXISTS (SELECT FROM pg_inherits
                    JOIN pg_class AS parent ON parent.oid = inhparent
                    JOIN pg_class AS child ON child.oid = inhrelid
                   WHERE parent.relnamespace = current_schema()::regnamespace
                     AND parent.relname = 'log_entries'
                     AND (child.relnamespace <> parent.relnamespace
                          OR child.relname !~ '^log_entries_[0-9]{4}_[0-9]{2}$'))
    THEN
        RAISE EXCEPTION 'the tables of the log keep their names'
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT guarded.oid::regclass::text INTO bare
      FROM pg_class AS guarded
     WHERE guarded.relnamespace = current_schema()::regnamespace AND guarded.relkind IN ('r', 'p')
       AND guarded.relname ~ '^log_(nodes|keys|entries(_[0-9]{4}_[0-9]{2})?|checkpoints|cosignatures)$'
       AND (SELECT count(*) FROM pg_trigger
             WHERE tgrelid = guarded.oid AND tgenabled = 'A'
               AND tgname IN ('log_keep_rows', 'log_keep_table', 'log_keep_key'))
           < CASE guarded.relname WHEN 'log_keys' THEN 3 ELSE 2 END
     LIMIT 1;
    IF bare IS NOT NULL THEN
        RAISE EXCEPTION 'the triggers that keep % stay, and stay enabled', bare
            USING ERRCODE = 'restrict_violation';
    END IF;
END $$;

REVOKE ALL ON FUNCTION matl_log_refuse_drop, matl_log_refuse_disarming FROM PUBLIC;
CREATE EVENT TRIGGER matl_log_keep_objects ON sql_drop EXECUTE FUNCTION matl_log_refuse_drop();
CREATE EVENT TRIGGER matl_log_keep_guards ON ddl_command_end WHEN TAG IN ('ALTER TABLE', 'ALTER TRIGGER')
    EXECUTE FUNCTION matl_log_refuse_disarming();
ALTER EVENT TRIGGER matl_log_keep_objects ENABLE ALWAYS;
ALTER EVENT TRIGGER matl_log_keep_guards ENABLE ALWAYS;
COMMIT;
