BEGIN TRANSACTION;
CREATE TABLE artifacts (artifact_key TEXT PRIMARY KEY, digest TEXT NOT NULL, report TEXT NOT NULL);
INSERT INTO "artifacts" VALUES('a-half','d1','{"digest": "d1", "recipe": "magnitude@0.5"}');
CREATE TABLE calibrations (
    calibration_key TEXT PRIMARY KEY, digest TEXT NOT NULL, source TEXT NOT NULL, seed INTEGER NOT NULL,
    sequences INTEGER NOT NULL, length INTEGER NOT NULL, tokens BLOB NOT NULL
);
INSERT INTO "calibrations" VALUES('cal','48d64f1cea4b5f8842b42bef4da30d8d199a0be79b6e278ab9731015f9f3a921','self',0,2,2,X'01000000020000000300000004000000');
CREATE TABLE commands (started TEXT NOT NULL, version TEXT NOT NULL, command TEXT NOT NULL);
INSERT INTO "commands" VALUES('2026-11-01T10:00:00+00:00','0.1.0','kick run old.toml -o old');
CREATE TABLE items (
    task TEXT NOT NULL, position INTEGER NOT NULL, item_id TEXT NOT NULL, cluster TEXT NOT NULL,
    question TEXT NOT NULL, context TEXT NOT NULL, reference TEXT NOT NULL, choices TEXT NOT NULL,
    PRIMARY KEY (task, item_id)
);
INSERT INTO "items" VALUES('factoid_qa',0,'q0','c0','Où? 0','','["ici"]','[]');
INSERT INTO "items" VALUES('factoid_qa',1,'q1','c1','Où? 1','','["ici"]','[]');
CREATE TABLE judgements (
    judgement_key TEXT PRIMARY KEY, judge TEXT NOT NULL, prompt TEXT NOT NULL, task TEXT NOT NULL,
    item_id TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, replicate INTEGER NOT NULL,
    reply TEXT NOT NULL, cut INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
INSERT INTO "judgements" VALUES('jk','judge','strict 1 general','instruction','i','f','s',0,'8 7',1,5,2);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('schema','1');
INSERT INTO "meta" VALUES('study_hash','734830369409089f23fe7a10b328ced76b622efeaa713f05c3ae7014c15e6678');
INSERT INTO "meta" VALUES('study','name = "old"
model = "toy"
dtype = "auto"
device = "auto"
prompting = "auto"
recipes = [
    "magnitude@0.5",
]
others = []
tasks = [
    { name = "factoid_qa", source = "pocket", protocol = "strict", limit = 2, seed = 0 },
]
seeds = [
    0,
]
propagate = true
margin = 0.05
alpha = 0.05
stop = "never"
correction = "none"

[calibration]
source = "self"
sequences = 32
length = 512

[server]
timeout = 120.0
concurrency = 8
attempts = 5
');
INSERT INTO "meta" VALUES('model','{"digest": "d0", "name": "toy", "source_precision": "float32"}');
INSERT INTO "meta" VALUES('tasks','[{"metric": "accuracy", "name": "factoid_qa"}]');
INSERT INTO "meta" VALUES('environment','{"llmkick": "0.1.0"}');
INSERT INTO "meta" VALUES('dense_digest','"d0"');
INSERT INTO "meta" VALUES('judged','j0');
CREATE TABLE noise (run_key TEXT PRIMARY KEY, found TEXT NOT NULL);
INSERT INTO "noise" VALUES('k-dense','{"accuracy": 0.5}');
CREATE TABLE prompts (
    task TEXT NOT NULL, item_id TEXT NOT NULL, base TEXT NOT NULL, head INTEGER NOT NULL, tail INTEGER NOT NULL,
    middle TEXT NOT NULL, PRIMARY KEY (task, item_id)
);
INSERT INTO "prompts" VALUES('factoid_qa','q0','q0',0,0,'{"prompt": "Où? 0"}');
INSERT INTO "prompts" VALUES('factoid_qa','q1','q0',16,2,'1');
CREATE TABLE records (
    run_key TEXT NOT NULL, model TEXT NOT NULL, recipe TEXT NOT NULL, seed INTEGER, task TEXT NOT NULL,
    item_id TEXT NOT NULL, cluster TEXT NOT NULL, response TEXT NOT NULL, score REAL, unscored_reason TEXT,
    tokens INTEGER NOT NULL, truncated INTEGER NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (run_key, item_id)
);
INSERT INTO "records" VALUES('k-dense','toy','dense',NULL,'factoid_qa','q0','c0','ici',1.0,NULL,3,0,'{"popularity": 0}');
INSERT INTO "records" VALUES('k-dense','toy','dense',NULL,'factoid_qa','q1','c1','ici',0.0,NULL,3,1,'{"popularity": 1}');
INSERT INTO "records" VALUES('k-half','toy','magnitude@0.5',0,'factoid_qa','q0','c0','ici',0.0,NULL,3,0,'{"popularity": 0}');
INSERT INTO "records" VALUES('k-half','toy','magnitude@0.5',0,'factoid_qa','q1','c1','ici',NULL,'too long',3,1,'{"popularity": 1}');
CREATE TABLE seconds (stage TEXT NOT NULL, detail TEXT NOT NULL, seconds REAL NOT NULL);
INSERT INTO "seconds" VALUES('evaluate','factoid_qa',1.5);
COMMIT;
