-- PostgreSQL's side of what a coordinator keeps beside the log's entries: checkpoints, cosignatures
-- and data keys come in by functions that check what SQL can, and turns are taken on a table.
--
-- Run once, in the transaction of 0003, as 0002_log.sql was in that of 0002.

-- A lock on a table that its owner alone may use: an advisory lock, anybody who may connect can
-- hold. Not one of the log's tables themselves: vacuuming would wait for appends, and they for it.
CREATE OR REPLACE FUNCTION log_lock() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    LOCK TABLE log_turn IN EXCLUSIVE MODE;
    -- A statement of its own, so that it sees what was committed while this one waited.
    RETURN (SELECT coalesce(max(node_index) + 1, 0) FROM log_nodes WHERE level = 0);
END $$;

CREATE FUNCTION log_root(p_size bigint) RETURNS bytea
LANGUAGE plpgsql STABLE AS $$
DECLARE
    root bytea;
    peak bytea;
BEGIN
    IF p_size = 0 THEN
        RETURN sha256(''::bytea);
    END IF;
    -- RFC 6962 section 2.1: the complete subtrees from the right, each hashed to its left one.
    FOR depth IN 0 .. 62 LOOP
        IF (p_size >> depth) % 2 = 1 THEN
            peak := (SELECT hash FROM log_nodes
                      WHERE level = depth AND node_index = (p_size >> depth) - 1);
            root := CASE WHEN root IS NULL THEN peak
                         ELSE sha256('\x01'::bytea || peak || root) END;
        END IF;
    END LOOP;
    RETURN root;
END $$;

CREATE FUNCTION log_put_checkpoint(p_size bigint, p_note bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    size_now bigint := log_lock();
    newest bigint := (SELECT max(size) FROM log_checkpoints);
    stated bytea;
BEGIN
    IF EXISTS (SELECT FROM log_checkpoints WHERE size = p_size) THEN
        RETURN;
    END IF;
    IF p_size IS NULL OR p_size < 0 OR p_size > size_now OR p_size < newest THEN
        RAISE EXCEPTION 'a checkpoint of % entries is not the next of a log of %, after one of %',
            p_size, size_now, newest USING ERRCODE = '22023';
    END IF;
    -- Whose signature follows, only the caller can tell; what is signed is the log as it is.
    stated := convert_to(format(E'\n%s\n%s\n\n', p_size, encode(log_root(p_size), 'base64')), 'UTF8')
        || '\xe28094'::bytea;
    IF p_note IS NULL OR length(p_note) > 16384 OR position(stated IN p_note) = 0 THEN
        RAISE EXCEPTION 'this is no note of size and root of the log' USING ERRCODE = '22023';
    END IF;
    INSERT INTO log_checkpoints (size, note) VALUES (p_size, p_note);
END $$;
COMMENT ON FUNCTION log_put_checkpoint IS
    'Keep a signed checkpoint of the log as it is; the first of a size stays.';

CREATE FUNCTION log_put_cosignature(p_size bigint, p_node_id text, p_line bytea) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM log_lock();
    IF NOT EXISTS (SELECT FROM log_checkpoints WHERE size = p_size) THEN
        RAISE EXCEPTION 'there is no checkpoint of % entries', p_size USING ERRCODE = '22023';
    END IF;
    IF p_node_id IS NULL OR p_node_id !~ '^[a-z][a-z0-9_-]{0,62}$' THEN
        RAISE EXCEPTION 'a cosignature is a hospital''s' USING ERRCODE = '22023';
    END IF;
    -- One line, under that hospital's name: U+2014, its key's name, base64.
    IF p_line IS NULL OR length(p_line) > 8192 OR encode(p_line, 'escape') !~
       ('^\\342\\200\\224 [!-~]*/' || p_node_id || ' [A-Za-z0-9+/]+=*\n$')
    THEN
        RAISE EXCEPTION 'this is no cosignature of %', p_node_id USING ERRCODE = '22023';
    END IF;
    INSERT INTO log_cosignatures (size, node_id, line) VALUES (p_size, p_node_id, p_line)
        ON CONFLICT DO NOTHING;
END $$;
COMMENT ON FUNCTION log_put_cosignature IS
    'Keep a witness''s line on a checkpoint that is kept; the first stays.';

CREATE FUNCTION log_put_key(p_name text, p_month text, p_wrapped_by text, p_wrapped bytea)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    -- A coordinator's clock may be ahead of this one.
    latest text := to_char((now() AT TIME ZONE 'UTC') + interval '1 day', 'YYYY-MM');
BEGIN
    PERFORM log_lock();
    IF p_month IS NULL OR p_month !~ '^[0-9]{4}-(0[1-9]|1[0-2])$' OR p_month > latest COLLATE "C"
    THEN
        RAISE EXCEPTION 'a data key is of a month up to %, not %', latest, p_month
            USING ERRCODE = '22023',
                  HINT = 'Compare the clocks of coordinator and database.';
    END IF;
    IF p_name IS DISTINCT FROM
       p_month || '.' || (SELECT count(*) + 1 FROM log_keys WHERE month = p_month)
    THEN
        RAISE EXCEPTION 'the next data key of % has another name than %', p_month, p_name
            USING ERRCODE = '22023';
    END IF;
    -- A second row of one key would outlive the erasing of the first.
    IF p_wrapped IS NULL OR length(p_wrapped) NOT BETWEEN 40 AND 256
       OR coalesce(p_wrapped_by, '') !~ '^[!-~]{1,200}$'
       OR EXISTS (SELECT FROM log_keys WHERE wrapped = p_wrapped)
    THEN
        RAISE EXCEPTION 'this is no wrapped key of its own' USING ERRCODE = '22023';
    END IF;
    INSERT INTO log_keys (name, month, wrapped_by, wrapped)
    VALUES (p_name, p_month, p_wrapped_by, p_wrapped);
END $$;
COMMENT ON FUNCTION log_put_key IS 'Keep the next data key of a month that has begun.';

REVOKE ALL ON FUNCTION log_root, log_put_checkpoint, log_put_cosignature, log_put_key FROM PUBLIC;
