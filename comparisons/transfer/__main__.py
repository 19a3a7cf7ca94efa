from comparisons.transfer.study import main

main()
