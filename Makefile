# idempotent_ingest: build, install and test; "make help" lists the targets.

EXTENSION  = idempotent_ingest
# The same as in the control file and in META.json; test/lint.sh compares them.
EXTVERSION = 0.2.0

MODULE_big = $(EXTENSION)
DATA       = $(sort $(wildcard $(EXTENSION)--*.sql))
OBJS       = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))

# The tests are listed by name, so that a file that got lost, or one that was
# never added, is found by test/lint.sh instead of being passed over.
REGRESS = merge_basic merge_versions merge_dedupe merge_types merge_targets merge_noop \
	merge_noop_wal merge_citext merge_icu merge_foreign merge_xml \
	merge_large merge_errors engines ledger fingerprint privileges quoting retention oldextversions jobs \
	target_predicate

ISOLATION = same_batch same_batch_other_content derived_id claim reapply forget \
	overlap unversioned_turns overtaken versioned_parallel version_guard \
	deadlock_freedom several_merges no_wait cancelled merge_vs_insert \
	merge_vs_update merge_vs_delete merge_vs_key_change merge_vs_truncate \
	merge_vs_ddl merge_vs_foreign_key merge_vs_second_unique schema_rename \
	add_columns partitioned staging_changes native_contention inbox retention \
	replay_after_conflict staging_partitions newer_index
# The tests have texts in several languages.
REGRESS_OPTS = --encoding=UTF8
ISOLATION_OPTS = --inputdir=$(srcdir)/test/isolation

# TAP needs Perl modules, so it is a target of its own and no part of installcheck.
PROVE_TESTS = test/t/*.pl

# -Wextra without the warnings that PostgreSQL's own headers and idioms give.
# -Werror is for us, not for users: make PROFILE=-Werror
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers \
	$(if $(findstring clang,$(CC)),,-Wno-clobbered)

.PHONY: all help setup demo test stress coverage mutants sanitize bench prove lint majors format dist deb

all:

help:
	@echo 'On Debian and Ubuntu, as root or with sudo; installs what is missing:'
	@echo '  make demo           build, load sample data into a throw-away server, show what happened'
	@echo '  make test           build, run all tests against throw-away servers'
	@echo '                      (PG_MAJOR=17, SUITES="regress tap", REGRESS="ledger" narrow it down)'
	@echo '  make stress         look for a counterexample to the guarantees, for a night (STAGES=coverage ...)'
	@echo '  make coverage       which lines and which errors of src/ the tests reach'
	@echo '  make mutants        break the code in many ways, and see that tests notice'
	@echo '  make sanitize       the tests with AddressSanitizer, and more'
	@echo '  make bench          run the benchmark against a throw-away server'
	@echo '  make lint           check the sources'
	@echo '  make format         format the C code as pgindent does'
	@echo '  make majors         test on the other PostgreSQL majors, in chroots'
	@echo '  make deb            build Debian packages for the majors that are installed, in ..'
	@echo 'Anywhere, with PG_CONFIG=/path/to/pg_config if it is not in the PATH:'
	@echo '  make                build'
	@echo '  make install        install into that PostgreSQL'
	@echo '  make installcheck   regression and isolation tests against the running server'
	@echo '  make prove          TAP tests (they start their own servers; needs IPC::Run)'
	@echo '  make clean          remove what was built'
	@echo '  make dist           the zip file for PGXN, of the last commit'

# These must work where PostgreSQL is not installed yet.
setup:
	@bash test/setup.sh

demo: setup
	@bash test/demo.sh

test: setup
	@bash test/run.sh

# make test runs some thousand histories; this is for a night.
stress: setup
	@bash test/stress.sh

# These use a copy of PostgreSQL, so that nobody else meets what they build.
coverage:
	@bash test/coverage.sh

mutants:
	@bash test/mutants.sh

sanitize:
	@bash test/sanitize.sh

bench: setup
	@bash bench/run.sh

lint:
	@bash test/lint.sh

majors:
	@bash test/majors.sh

format: setup
	@bash test/indent.sh

# As PGXN wants it: one directory with the version in its name.
DISTNAME = $(EXTENSION)-$(EXTVERSION)

dist:
	git archive --format=zip --prefix=$(DISTNAME)/ -o $(DISTNAME).zip HEAD

# debian/control lists the packages, one for each major.
deb:
	PG_SUPPORTED_VERSIONS="$${PG_SUPPORTED_VERSIONS:-installed}" PG_UPDATECONTROL=yes \
		dpkg-buildpackage --build=binary --unsigned-changes

# What a variable holds, for the scripts: make -s print-REGRESS
print-%:
	@echo '$($*)'

# Packages of libpq or psql bring a pg_config too, but no server headers.
PG_CONFIG ?= pg_config
POSTGRES_H := $(wildcard $(shell $(PG_CONFIG) --includedir-server 2>/dev/null)/postgres.h)

ifneq ($(POSTGRES_H),)
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PGXS does not track headers unless PostgreSQL was configured to.
$(OBJS) $(OBJS:.o=.bc): $(wildcard src/*.h)

prove:
	$(prove_installcheck)

else

all install uninstall installcheck prove clean:
	@echo 'The files to build against PostgreSQL are missing ($(PG_CONFIG) --includedir-server).' >&2
	@echo 'Debian, Ubuntu: "make setup" installs them, or install postgresql-server-dev-NN and libxxhash-dev.' >&2
	@echo 'Elsewhere: install the development packages of PostgreSQL (15 or later) and xxHash,' >&2
	@echo 'or name another installation: make PG_CONFIG=/path/to/pg_config' >&2
	@exit 1

endif
