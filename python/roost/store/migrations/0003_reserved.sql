-- 0003: a number that another change bears; this file gives way to it.
SELECT 1;
