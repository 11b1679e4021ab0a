"""The table of uWSGI's options: what becomes of each."""

from __future__ import annotations

import fnmatch
from enum import Enum
from functools import lru_cache
from typing import NamedTuple

from uwsgitwisted.convert.plan import (
    Act,
    add,
    cron,
    cron2,
    error_page,
    flag,
    header,
    keep,
    logfile,
    megabytes,
    number,
    option,
    plugins,
    protocol,
    static_expires,
    together,
    unit,
)
from uwsgitwisted.convert.shared import cache, cache2, mule, stats, subscribe, subscribe2


class Outcome(Enum):
    """What becomes of an option; the value is how it is printed."""

    SAME = "the same"
    NGINX = "nginx's"
    UNNECESSARY = "unnecessary"
    REFUSED = "refused"


class Rule(NamedTuple):
    """What becomes of options.

    :param names: the options, with spaces between them; a star stands for any letters.
    :param text: what takes their place, why nothing has to, or what to do.
    :param act: puts their value into a plan; None if there is nothing to do.
    """

    names: str
    outcome: Outcome
    text: str
    act: Act | None = None


def _same(names: str, text: str, act: Act | None) -> Rule:
    return Rule(names, Outcome.SAME, text, act)


def _nginx(names: str, text: str, act: Act | None = None) -> Rule:
    return Rule(names, Outcome.NGINX, text, act)


def _unnecessary(names: str, text: str, act: Act | None = None) -> Rule:
    return Rule(names, Outcome.UNNECESSARY, text, act)


def _refused(names: str, text: str, act: Act | None = None) -> Rule:
    return Rule(names, Outcome.REFUSED, text, act)


#: Where requests come from.
_PORTS = (
    _same("socket uwsgi-socket", "node: `--listen`", add("socket")),
    _same("http-socket http11-socket http httprouter", "router: `--http`, in front of the node", add("http")),
    _same("https-socket https", "router: `--https`, in front of the node", add("https")),
    _same("ssl-socket suwsgi-socket", "node: `--listen ssl:...`", add("ssl")),
    _same("protocol socket-protocol", "`uwsgi`: the node's; `http`: the router's", protocol),
    _same("chmod-socket chmod", "`mode=` in the node's `--listen`", keep("chmod", lambda value: number(value or "666"))),
    _same("listen", "`backlog=` in the node's `--listen`", keep("listen", number)),
    _same("http-to", "router: `--nodes`", add("nodes")),
    _same("http-timeout", "router: `--timeout`", option("router", "--timeout", number)),
    _same("http-connect-timeout", "router: `--connect-timeout`", option("router", "--connect-timeout", number)),
    _same("http-headers-timeout", "router: `--header-timeout`", option("router", "--header-timeout", number)),
    _same("socket-timeout", "node: `--body-timeout` and `--write-timeout`",
          together(option("node", "--body-timeout", number), option("node", "--write-timeout", number))),
    _same("so-send-timeout socket-send-timeout so-write-timeout socket-write-timeout", "node: `--write-timeout`",
          option("node", "--write-timeout", number)),
    _refused("chown-socket", "give the unit `Group=` with nginx's group: members of it may connect"),
    _refused("http-to-https https2 https-export-cert https-session-context sni* ssl-*", "use nginx, with `return 301 https://$host$request_uri`"),
    _unnecessary("https-socket-modifier? http-socket-modifier?", "Python's applications have modifier 0"),
    _refused("allowed-modifiers remap-modifier force-gateway freebind tcp-fast* socket-???buf", "leave it out: the system's defaults hold"),
    _refused("fastcgi* scgi* raw-* puwsgi-socket http-raw-body *abstract-socket",
             "let nginx speak uwsgi, with `uwsgi_pass`"),
    _refused("shared-socket undeferred-shared-socket map-socket zerg* http-zerg",
             "one node has all its workers behind its ports; `--listen systemd:...` takes a port from systemd"),
    _refused("enable-proxy-protocol http-enable-proxy-protocol",
             "name the proxy in the router's `--trust`, or use nginx's `proxy_protocol`"),
)  # fmt: skip

#: What runs, and where.
_APPLICATION = (
    _same("module wsgi", "node: `--wsgi`", keep("module")),
    _same("wsgi-file file", "node: `--wsgi`, with the module that the file is", keep("wsgi-file")),
    _same("callable", "the name behind the colon in the node's `--wsgi`", keep("callable")),
    _same("mount worker-mount", "node: `--mount`", add("mount")),
    _same("chdir chdir2", "the directory in which the commands run; node: `--chdir`", keep("chdir")),
    _same("home virtualenv venv pyhome", "the directory with `bin/twistd`: install this package in it", keep("venv")),
    _same("pythonpath python-path pp", "the environment variable `PYTHONPATH`", add("pythonpath")),
    _same("env", "an environment variable of the services", add("env")),
    _same("optimize", "the environment variable `PYTHONOPTIMIZE`", keep("optimize", number)),
    _same("import pyimport py-import python-import shared-import shared-pyimport shared-py-import "
          "shared-python-import", "`--handler` of the spooler; of the node, if there is no spooler", add("import")),
    _same("spooler-import spooler-pyimport spooler-py-import spooler-python-import", "spooler: `--handler`",
          add("spooler-import")),
    _same("processes workers", "node: `--engine processes:N`", keep("processes", number)),
    _same("threads", "node: `--wsgi-threads`", option("node", "--wsgi-threads", number)),
    _same("plugins plugin need-plugins need-plugin", "for Python: nothing is needed", plugins),
    _unnecessary("manage-script-name ignore-script-name", "a mount's path always moves to `SCRIPT_NAME`"),
    _unnecessary("master single-interpreter need-app lazy lazy-apps enable-threads thunder-lock plugins-dir "
                 "plugin-dir autoload no-default-app no-site python-version py-call-osafterfork "
                 "py-call-uwsgi-fork-hooks reload-os-env wsgi-env-behavio* wsgi-strict strict skip-atexit* use-abort clock rpc-max "
                 "thread-stacksize threads-stacksize thread-stack-size threads-stack-size no-threads-wait "
                 "post-buffering post-buffering-bufsize offload-thread* buffer-size max-vars max-apps "
                 "close-on-exec* skip-zero safe-fd fd-safe no-fd-passing lock-engine ftok persistent-ipcsem "
                 "tcp-nodelay so-keepalive shutdown-sockets no-defer-accept http-keepalive http-manage-expect "
                 "http-auto-chunked http-processes http-workers http-events http-quiet http-buffer-size "
                 "http-harakiri http-server-name-as-http-host http-manage-source http-chunked-input http-gracetime "
                 "reuse-port ignore-sigpipe ignore-write-errors write-errors-* disable-write-exception "
                 "wsgi-accept-buffer* start_response-nodelay response-headers-limit",
                 "it is always so here, or there is nothing to choose"),
    _unnecessary("procname* auto-procname", "processes are named after the service"),
    _refused("cheap cheaper* idle die-on-idle", "all processes run all the time: choose `processes` for the peak"),
    _refused("paste paste-logger ini-paste* pecan web3 pump wsgi-lite eval",
             "write a module that makes the WSGI application, and name it with `--wsgi module:callable`"),
    _refused("pyargv py-programname py-program-name py-executable py-sys-executable python-worker-override "
             "pymodule-alias post-pymodule-alias python-raw", "do it in the module of the application"),
    _refused("async ugreen* gevent* loop asyncio* tornado* greenlet*",
             "let each worker run several requests with `--wsgi-threads N`"),
    _refused("vhost* vhost-host", "one node for each application, and a `server` of nginx for each"),
    _refused("worker-exec* pyrun python py cgi* php* perl* psgi* rack* rails* lua* jvm* ring* mono* gccgo* go-*",
             "only Python's applications run here: leave this one to uWSGI"),
    _refused("rb* gemset* tuntap-* forkpty* pty-* fork-server* goroutine* v8-* early-* pypy-* clojure* geoip* jail* curl-* gridfs-* "
             "glusterfs-* rados-* webdav-* ldap* objc* matheval*", "it belongs to a plugin: leave this one to uWSGI"),
    _refused("envdir early-envdir", "write its files into a file of lines `NAME=value`, for `--env-file`"),
    _refused("unenv", "`UnsetEnvironment=` in the unit"),
)  # fmt: skip

#: How long something may take, and when workers are replaced.
_LIMITS = (
    _same("harakiri", "node: `--timeout`", option("node", "--timeout", number)),
    _same("max-requests", "node: `--max-requests`", option("node", "--max-requests", number)),
    _same("reload-on-rss evil-reload-on-rss", "node: `--reload-on-rss`", option("node", "--reload-on-rss", megabytes)),
    _same("limit-as", "node: `--max-memory`, which counts what is allocated", option("node", "--max-memory", megabytes)),
    _same("limit-post", "node and router: `--max-body`; nginx: `client_max_body_size`",
          together(option("node router", "--max-body", number), keep("limit-post", number))),
    _same("reload-mercy worker-reload-mercy", "node: `--drain-timeout`", option("node", "--drain-timeout", number)),
    _same("touch-reload fs-reload", "node and spooler: `--touch-reload`", together(add("touch node"), add("touch spooler"))),
    _same("touch-workers-reload touch-chain-reload", "node: `--touch-reload`", add("touch node")),
    _same("touch-spoolers-reload", "spooler: `--touch-reload`", add("touch spooler")),
    _same("max-worker-lifetime", "node: `--max-worker-lifetime`",
          option("node", "--max-worker-lifetime", number)),
    _same("limit-nproc", "`LimitNPROC=` in the unit", unit("LimitNPROC", number)),
    _same("max-fd", "`LimitNOFILE=` in the unit", unit("LimitNOFILE", number)),
    _same("prio", "`Nice=` in the unit", unit("Nice")),
    _same("umask", "`UMask=` in the unit", unit("UMask")),
    _unnecessary("die-on-term", "SIGTERM always ends a service, after what runs"),
    _unnecessary("vacuum no-orphans exit-on-reload check-interval forkbomb-delay", "it is always so here"),
    _unnecessary("harakiri-verbose memory-report backtrace-depth", "the log names the request of a worker that is killed"),
    _unnecessary("max-requests-delta max-worker-lifetime-delta min-worker-lifetime",
                 "workers are replaced one by one, while the others answer"),
    _refused("harakiri-* no-harakiri-*", "a worker over its `--timeout` is killed at once"),
    _refused("reload-on-as evil-reload-on-as", "use `--reload-on-rss`: the address space says little about memory"),
    _refused("cpu-affinity", "`CPUAffinity=` in the unit, for all processes"),
    _refused("reload-on-exception* catch-exceptions exception-handler",
             "an exception's traceback is in the log, and the answer is 500"),
    _refused("py-auto-reload* py-autoreload python-auto-reload python-autoreload",
             "while you develop, use `--touch-reload FILE`, or your framework's own server"),
    _refused("never-swap ksm mem-collector-freq cgroup* namespace* ns ns-net unshare* setns* jailed refork* re-fork* "
             "pivot-root pivot_root cap* check-mount* mountpoint-check", "the unit has lines for it: see systemd.exec and systemd.resource-control"),
    _refused("brutal-reload-on-fd reload-on-fd fs-brutal-reload touch-exec touch-signal fs-signal hook-touch "
             "propagate-touch touch-mules-reload touch-logrotate touch-logreopen",
             "a systemd path unit that runs `systemctl reload`"),
)  # fmt: skip

#: Tasks.
_SPOOLER = (
    _same("spooler", "spooler: `--spool sqlite:DIRECTORY.sqlite`, and `--drain dir:DIRECTORY` for the tasks that are "
          "there", add("spooler")),
    _same("spooler-external", "`UWSGITWISTED_SPOOLER` in the node's environment", add("spooler-external")),
    _same("spooler-processes", "spooler: `--workers`", option("spooler", "--workers", number)),
    _same("spooler-max-tasks", "spooler: `--max-requests`", option("spooler", "--max-requests", number)),
    _same("spooler-harakiri", "spooler: `--timeout`", option("spooler", "--timeout", number)),
    _same("spooler-chdir", "the directory in which the spooler runs", keep("spooler-chdir")),
    _unnecessary("spooler-frequency spooler-freq", "a spooler learns of new tasks at once"),
    _unnecessary("spooler-ordered", "tasks always run by priority, then in order"),
    _unnecessary("spooler-quiet", "a task that succeeds is not logged"),
    _same("cron", "a line of crontab", cron),
    _same("cron2 unique-cron", "a line of crontab", cron2),
    _refused("cron-harakiri", "write `timeout SECONDS` before the command in crontab"),
    _refused("legion* cron-legion unique-legion-cron unique-cron-legion",
             "for tasks that must run once in a cluster, use `uwsgi-spooler --cron` with PostgreSQL"),
    _refused("*attach-daemon* attach-control-daemon daemons-honour-stdin", "a systemd unit of its own for the command"),
)  # fmt: skip

#: Files, headers, and the log.
_FILES = (
    _same("static-map static-map2", "node and router: `--static`; nginx: a `location`", add("static")),
    _nginx("check-static static-check check-static-docroot", "`try_files` before the application", add("check-static")),
    _nginx("static-index", "`index`", lambda plan, value: plan.server.append(f"index {value};")),
    _nginx("static-expires*", "`expires` for all static files", static_expires),
    _nginx("add-header", "`add_header`", header),
    _nginx("rem-header del-header", "`uwsgi_hide_header`",
           lambda plan, value: plan.location.append(f"uwsgi_hide_header {value};")),
    *(_nginx(f"error-page-{status}", "`error_page`", error_page(status)) for status in (403, 404, 500)),
    _nginx("static-gzip-* http-auto-gzip", "`gzip_static on;` or `gzip on;`",
           lambda plan, _: plan.server.append("gzip on;")),
    _nginx("static-safe static-skip-ext static-cache-paths* mimefile mime-file route* final-route* error-route* "
           "response-route* http-use-* http-var http-modifier? http-cheap http-fallback http-websockets",
           "write it in a `location`: nginx has more of this than uWSGI"),
    _nginx("collect-header response-header-collect pull-header", "`uwsgi_hide_header` and variables `$upstream_http_...`"),
    _unnecessary("body-read-warning wsgi-disable-file-wrapper", "there is no such warning, and `wsgi.file_wrapper` copies no file through Python"),
    _refused("upload-progress", "let the browser measure its progress"),
    _refused("websocket* chunked-input-*", "a `--resource` of Twisted answers what WSGI can't"),
    _unnecessary("honour-range file-serve-mode fileserve-mode disable-sendfile",
                 "ranges are always answered; the kernel sends files"),
    _same("logto logto2 daemonize daemonize2", "twistd's `--logfile`; systemd keeps the service in the foreground",
logfile),
    _same("req-logger logger-req", "node: `--access-log`, for a file", keep("req-logger")),
    _same("disable-logging", "node: no `--access-log`", flag("quiet")),
    _unnecessary("log-syslog", "the journal has what a unit writes"),
    _unnecessary("logdate log-date log-master* log-zero log-micros threaded-logger log-prefix log-reopen",
                 "the log has times; SIGHUP opens the access log again"),
    _refused("log-format logformat* log-format-strftime", "`--access-log-format` is `combined` or `json`"),
    _refused("log-maxsize log-backupname log-truncate logfile-ch*", "logrotate, with `systemctl reload` afterwards"),
    _refused("log-* logger* req-logger-* log-x-forwarded-for rsyslog-*", "filter the access log, or nginx's"),
)  # fmt: skip

#: Processes, users, and what stands around them.
_SYSTEM = (
    _same("uid", "`User=` in the unit; twistd's `--uid`", keep("uid")),
    _same("gid", "`Group=` in the unit; twistd's `--gid`", keep("gid")),
    _same("immediate-uid", "`User=` in the unit; twistd's `--uid`", keep("uid")),
    _same("immediate-gid", "`Group=` in the unit; twistd's `--gid`", keep("gid")),
    _same("add-gid", "`SupplementaryGroups=` in the unit", unit("SupplementaryGroups")),
    _same("pidfile pidfile2 safe-pidfile safe-pidfile2", "twistd's `--pidfile`", keep("pidfile")),
    _same("chroot", "`RootDirectory=` in the unit", unit("RootDirectory")),
    _unnecessary("master-as-root drop-after-* no-initgroups force-cwd binsh binary-path honour-stdin",
                 "systemd does what this is for"),
    _unnecessary("print iprint show-config exit dump-options version help usage cflags dot-h config-py *-list",
                 "it only prints"),
    _unnecessary("ini yaml yml xml xmlconfig json* js* include inherit config set set-placeholder set-ph for for-* if-* "
                 "ifenv ifexists ifdir ifplugin endif end end-if endfor end-for mode fallback-config",
                 "the configuration is read with it"),
    _refused("emperor* vassal* early-emperor imperial-* heartbeat",
             "convert the vassals' files one by one; each becomes units of systemd"),
    _refused("hook-* exec-* call-* mount-* umount-* wait-* after-request-* file-write",
             "`ExecStartPre=` and `ExecStopPost=` in the unit, or a line of the application"),
    _refused("master-fifo", "signals: HUP reloads, TERM stops"),
    _refused("notify-socket subscription-notify-socket", "systemd knows a service by its process"),
    _refused("declare-option* resolve inject-* blacklist end-blacklist whitelist end-whitelist binary-append-data "
             "build-plugin dlopen", "write what it stands for"),
    _refused("symcall* profiler", "it is for applications in C, or for uWSGI itself"),
    _refused("stop reload pause suspend resume flock* get extract connect-and-read ping* signal nagios "
             "command-mode no-server test pyshell* py-tracebacker print-sym* *-binary-patch* reaper",
             "it is a command, and no part of a configuration"),
)  # fmt: skip

#: What workers share, and what watches them.
_SHARED = (
    _same("cache", "node: `--cache`", cache),
    _same("cache2", "node: `--cache`, as large as its blocks together", cache2),
    _same("mule", "node: `--mule`, or one more of `--mules`", mule),
    _same("mules", "node: `--mules`", option("node", "--mules", number)),
    _same("queue", "node: `--queue`", option("node", "--queue", number)),
    _same("stats stats-server", "node: `--stats`", stats),
    _same("subscribe-to st subscribe", "node: `--subscribe`", subscribe),
    _same("subscribe2", "node: `--subscribe`", subscribe2),
    _unnecessary("locks", "there are 256 locks"),
    _unnecessary("cache-blocksize cache-expire-freq cache-report-freed-items", "an item takes what it has, and is gone when it expires"),
    _unnecessary("queue-blocksize mule-msg-size signal-bufsize signals-bufsize", "the queue and the messages to mules have room for 16 MiB"),
    _unnecessary("subscribe-freq unsubscribe-on-graceful-reload stats-min* stats-no-*", "it is always so here"),
    _refused("cache* add-cache-item load-file-in-cache* check-cache queue-store*", "caches and the queue live in a node's memory: use Redis or memcached"),
    _refused("farm mule-harakiri mule-reload-mercy", "number the mules: `@mule(1)`, `@mule(2)`"),
    _refused("sharedarea* py-sharedarea snmp* udp multicast*", "a database, or messages to a node"),
    _refused("timer signal-timer rbtimer signal-rbtimer", "`uwsgidecorators.timer` in a handler module"),
    _refused("stats-http", "`--stats` gives JSON without HTTP"),
    _refused("metric* enable-metrics alarm* *-alarm *-stats *-stats-server *-ss stats-push* carbon* rrdtool* statsd*", "read what `--stats` gives"),
    _refused("subscription* start-unsubscribed subscribe-with-modifier1 weight auto-weight", "all nodes get the same share of requests, and announcements are not signed"),
    _refused("*-subscription-* *-resubscribe*", "name the nodes in nginx's `upstream`, or in the router's `--nodes`"),
    _refused("fastrouter* rawrouter* sslrouter* http-* router*", "nginx, or `uwsgi-router --nodes`"),
    _refused("*", "uWSGI 2.0 has no such option, and no other option uses it: check its spelling"),
)  # fmt: skip

RULES = (*_PORTS, *_APPLICATION, *_LIMITS, *_SPOOLER, *_FILES, *_SYSTEM, *_SHARED)


@lru_cache
def _exact() -> dict[str, Rule]:
    return {name: rule for rule in reversed(RULES) for name in rule.names.split()}


def rule_of(key: str) -> Rule:
    """Return what becomes of the option *key*: by its name, or by the first pattern that fits it."""
    if key in _exact():
        return _exact()[key]
    return next(rule for rule in RULES for pattern in rule.names.split() if fnmatch.fnmatchcase(key, pattern))
