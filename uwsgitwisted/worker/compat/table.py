"""Which names of uWSGI's two modules there are: each one works, works differently, or is refused.

This is the one place that says it. The modules :mod:`.uwsgi` and :mod:`.uwsgidecorators` get their names from
here, docs/uwsgi-module.md has the same table, and a test compares all of them with uWSGI's own names.

To add a name, write the function ``NAME`` in a module beside this one, replace the name's entry here by
``works("that_module")``, or by ``differs("that_module", "in which way")``, and run
``python -m tests.uwsgi_names`` to write the document. The module is imported when somebody first uses the name.
A variable that handler modules assign, such as ``uwsgi.spooler``, is defined in :mod:`.uwsgi` itself; its entry
has the module ``"uwsgi"``. A refused name is there as well, so that a module that only imports it works: the
call raises :class:`~uwsgitwisted.errors.NotProvided`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Support(Enum):
    """What becomes of a name; the values are the words of the document."""

    WORKS = "works"
    DIFFERS = "works differently"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Name:
    """What becomes of one name.

    :param support: whether it works.
    :param note: what is different, or what to use instead.
    :param home: the module in this folder that has it; empty if it is refused.
    :param attribute: its name there; empty for the same name.
    :param is_decorator: whether it is a decorator, which must not fail before the decorated function is called.
    """

    support: Support
    note: str = ""
    home: str = ""
    attribute: str = ""
    is_decorator: bool = False


def works(home: str, note: str = "", *, attribute: str = "") -> Name:
    """Describe a name that does what it does in uWSGI."""
    return Name(Support.WORKS, note, home, attribute)


def differs(home: str, note: str, *, attribute: str = "") -> Name:
    """Describe a name that does something else than in uWSGI; the *note* says what."""
    return Name(Support.DIFFERS, note, home, attribute)


def refused(instead: str, *, is_decorator: bool = False) -> Name:
    """Describe a name whose call raises an error, which says what to use *instead*."""
    return Name(Support.REFUSED, instead, is_decorator=is_decorator)


def _all(names: str, entry: Name) -> dict[str, Name]:
    """Give several names the same entry."""
    return dict.fromkeys(names.split(), entry)


_SPOOL = (
    "Returns True, where uWSGI returns a file's name. Text and numbers are accepted too; other types, and a "
    "task that is not taken, are a ValueError."
)
_PERIODIC = "a spooler runs it as a task; any other service by a signal"
_CACHE = "a cache that --cache doesn't name is an error, and none is another server's"
_TIMER = "a fraction is possible; there is no tick while the last one's function runs"
_FARM = refused("send work with uwsgi.spool to a spooler, whose queues have workers of their own")
_SHAREDAREA = refused("keep shared values in a cache server, or in multiprocessing.shared_memory")
_SNMP = refused("count in the application, with a library such as prometheus-client")
_LEGION = refused("elect a leader with a lock of the database or of ZooKeeper, etcd or Consul")
_WEBSOCKET = refused("serve WebSockets with an ASGI server or with autobahn on Twisted, behind the same nginx")
_CHUNKED = refused("read environ['wsgi.input'], whatever the body's encoding is")
_ASYNC = refused("use --engine reactor, whose handlers are coroutines, or --engine threads:N")
_SOCKETS = refused("use the socket module of Python, or uwsgitwisted.blocking to call a node")
_IMPORTER = refused("import Python modules from a directory or a zip file on sys.path")

#: The names of the ``uwsgi`` module, in the document's order.
UWSGI: Mapping[str, Mapping[str, Name]] = {
    "Messages between nodes": {
        "message_manager_marshal": works("uwsgi", "you assign it"),
        "send_uwsgi_message": works("calls"),
        "send_multi_uwsgi_message": works("calls"),
        "send_message": differs(
            "calls",
            "It returns the whole answer. In uWSGI 1.0 it returned an iterator of the answer's chunks: take "
            "the answer as it is, where that code joins them.",
        ),
    },
    "RPC": {
        "register_rpc": works("functions"),
        "rpc": works("functions"),
        "call": works("functions"),
        "rpc_list": works("functions"),
    },
    "The spooler": {
        "spooler": works("uwsgi", "you assign it"),
        "SPOOL_OK": works("uwsgi"),
        "SPOOL_RETRY": works("uwsgi"),
        "SPOOL_IGNORE": works("uwsgi"),
        "spool": differs("calls", _SPOOL),
        "send_to_spooler": differs("calls", _SPOOL, attribute="spool"),
        "spoolers": differs("uwsgi", "the addresses of the spoolers, where uWSGI has directories"),
        "spooler_dir": differs("spooling", "the spooler's address, where uWSGI 1.0 had a directory"),
        "spooler_jobs": differs("spooling", "the ids of up to 1,000 tasks, where uWSGI has the paths of files"),
        "spooler_get_task": differs("spooling", "takes a task's id, where uWSGI takes the path of a file"),
        "set_spooler_frequency": differs("spooling", "does nothing: a task starts when it is due"),
        "spooler_pid": differs("spooling", "0 outside the spooler, which may be on another machine"),
        "spooler_pids": differs("spooling", "empty outside the spooler"),
        "i_am_the_spooler": works("spooling"),
    },
    "The process": {
        "masterpid": differs("calls", "the front's, which starts the workers"),
        "worker_id": works("calls"),
        "numproc": works("uwsgi"),
        "opt": differs("calls", "the options of the running service; `spooler` is the spooler's address"),
        "version": differs("uwsgi", "the version of uwsgitwisted"),
        "log": works("calls"),
        "post_fork_hook": works("uwsgi", "you assign it"),
        "workers": differs("service", "the applications of a worker have no figures of their own"),
        "logsize": differs("service", "the size of twistd's log; 0 if it is no file"),
        "reload": works("service"),
        "stop": works("service"),
        "suspend": differs("service", "only returns True: no engine here interrupts a function"),
        "set_user_harakiri": differs("requests", "raises outside a worker process; one limit for all threads"),
        "request_id": works("requests"),
        "hostname": works("service"),
        "total_requests": works("service"),
        "mem": works("service"),
        "micros": works("service"),
        "ready": works("service"),
        "setprocname": works("service"),
        "listen_queue": refused("ask the system, with ss -lt"),
        "ready_fd": refused("wait until the node answers a ping"),
        "accepting": refused("leave it out: a worker accepts when it is loaded"),
        "alarm": refused("log an error, and have the log watched"),
        "set_warning_message": works("calls"),
        "version_info": differs("uwsgi", "the version of uWSGI whose module this is like"),
        **_all("cores has_threads started_on", works("uwsgi")),
        "buffer_size": differs("uwsgi", "65,535: the largest payload of a packet"),
        "is_a_reload": differs("uwsgi", "always False"),
        **_all("applications loop unbit", differs("uwsgi", "always None")),
        **_all("magic_table sockets", differs("uwsgi", "always empty")),
        "decorators": works("service", "the module"),
    },
    "Web requests": {
        "set_logvar": works("requests"),
        "get_logvar": works("requests"),
        "add_var": differs("requests", "the application's environ has it too"),
        "sendfile": differs("requests", "sends at once, not after the application has returned"),
        "cl": works("requests"),
        "log_this_request": refused("give --access-log, which has every request"),
        "offload": refused("use uwsgi.sendfile"),
        "start_response": refused("call the start_response that the application gets"),
        "route": refused("have nginx route requests"),
        **_all("chunked_read chunked_read_nb", _CHUNKED),
        **_all(
            "websocket_handshake websocket_recv websocket_recv_nb websocket_send websocket_send_binary",
            _WEBSOCKET,
        ),
    },
    "Signals, timers, cron and file monitors": {
        "register_signal": differs("signals", "a target that is not there is refused"),
        "signal": differs("signals", "another server must allow it, by --signals-from if it is one of ours"),
        **_all("signal_wait signal_received signal_registered", works("signals")),
        "add_timer": differs("signals", _TIMER),
        "add_rb_timer": differs("signals", _TIMER),
        "add_ms_timer": differs("signals", _TIMER),
        "add_cron": differs("signals", "a time that never comes is refused"),
        "add_file_monitor": differs("signals", "changes while the function runs give one more run"),
    },
    "Locks": {
        "lock": differs("shared", "there are 256; to take one twice is an error, where uWSGI hangs"),
        **_all("unlock is_locked", works("shared")),
    },
    "The cache": {
        **_all("cache_clear cache_del", differs("stores", _CACHE)),
        **_all("cache_exists cache_get cache_keys cache_num", differs("stores", _CACHE)),
        **_all("cache_set cache_update", differs("stores", _CACHE)),
        **_all("cache_dec cache_div cache_inc cache_mul", differs("stores", _CACHE)),
    },
    "The queue": {
        **_all("queue_get queue_set queue_last queue_slot queue_pull_slot queue_size", works("stores")),
        **_all("queue_push queue_pull queue_pop", differs("stores", "items keep their order in a full queue")),
    },
    "Metrics": _all(
        "metric_get metric_set metric_inc metric_dec metric_mul metric_div metric_set_max metric_set_min",
        differs("stores", "a metric is there from its first use on, without an option"),
    ),
    "Mules": {
        **_all("mule_id mule_get_msg mule_msg_recv_size install_mule_msg_hook", works("signals")),
        "mule_msg": differs("signals", "a mule that is not there is an error, and there are no farms"),
        "mule_msg_hook": works("uwsgi", "you assign it"),
    },
    "Farms": _all("farm_get_msg farm_msg in_farm", _FARM),
    "Waiting, asynchronous calls and sockets": {
        **_all("async_connect async_sleep wait_fd_read wait_fd_write", _ASYNC),
        "green_schedule": differs("service", "as for suspend", attribute="suspend"),
        **_all("connect disconnect is_connected send recv close connection_fd", _SOCKETS),
    },
    "Shared memory": _all(
        "sharedarea_read sharedarea_write sharedarea_readbyte sharedarea_writebyte sharedarea_read8 "
        "sharedarea_write8 sharedarea_readlong sharedarea_writelong sharedarea_read64 sharedarea_write64 "
        "sharedarea_read32 sharedarea_write32 sharedarea_read16 sharedarea_write16 sharedarea_inclong "
        "sharedarea_inc64 sharedarea_inc32 sharedarea_dec64 sharedarea_dec32 sharedarea_rlock "
        "sharedarea_wlock sharedarea_unlock sharedarea_object sharedarea_memoryview",
        _SHAREDAREA,
    ),
    "SNMP": _all(
        "snmp_set_community snmp_set_counter32 snmp_set_counter64 snmp_set_gauge snmp_incr_counter32 "
        "snmp_incr_counter64 snmp_incr_gauge snmp_decr_counter32 snmp_decr_counter64 snmp_decr_gauge",
        _SNMP,
    ),
    "Legions": _all("i_am_the_lord lord_scroll scrolls", _LEGION),
    "Files and imports": {
        **_all("SymbolsImporter SymbolsZipImporter ZipImporter", _IMPORTER),
        "embedded_data": refused("read files of a package with importlib.resources"),
        "extract": refused("open the file, or the URL with urllib.request"),
        "parsefile": refused("read the file with uwsgitwisted.wire.packet and uwsgitwisted.wire.vars"),
    },
}

#: The names of the ``uwsgidecorators`` module, in the document's order.
DECORATORS: Mapping[str, Mapping[str, Name]] = {
    "Tasks": {
        "spool": differs("decorators", "the arguments of pass_arguments=True are marshalled, not pickled"),
        "spoolforever": differs("decorators", "as for spool"),
        "spoolraw": differs("decorators", "as for spool"),
        "spool_decorate": refused("use @spool, @spoolraw or @spoolforever"),
        "manage_spool_request": works("decorators"),
        "spooler_functions": works("decorators"),
    },
    "Processes": {
        "postfork": works("decorators"),
        "postfork_chain": works("decorators"),
        "postfork_chain_hook": works("decorators"),
        "thread": works("decorators"),
        "harakiri": differs("decorators", "as for uwsgi.set_user_harakiri"),
        "lock": works("signal_decorators"),
    },
    "RPC": {"rpc": works("decorators")},
    "Signals, timers, cron and file monitors": {
        **_all("timer rbtimer cron", differs("decorators", _PERIODIC)),
        "mstimer": differs("signal_decorators", _PERIODIC),
        **_all("signal filemon", works("signal_decorators")),
        "get_free_signal": works("signals"),
    },
    "Mules": {
        **_all("mule muleloop mulemsg", works("signal_decorators")),
        "mulefunc": differs("signal_decorators", "the arguments are marshalled, not pickled"),
        "mule_functions": works("signals"),
        "mule_msg_dispatcher": works("signals", attribute="dispatch"),
        **_all("mule_brain mule_brainloop mulemsg_loop", refused("use @mule, @muleloop or @mulemsg")),
    },
    "Farms and Erlang": {
        "farm": refused(_FARM.note, is_decorator=True),
        "farm_loop": _FARM,
        "erlang": refused("call the Erlang node from a handler with a library of its own", is_decorator=True),
    },
    "Modules": {"uwsgi": works("uwsgidecorators", "the module")},
}


def flatten(groups: Mapping[str, Mapping[str, Name]]) -> dict[str, Name]:
    """Return the names of all groups."""
    return {name: entry for group in groups.values() for name, entry in group.items()}
